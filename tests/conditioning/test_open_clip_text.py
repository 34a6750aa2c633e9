"""The text tower of open_clip: its own forward on a tiny model that is saved as published ones."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tests.sitecustomize  # noqa: F401
from regscale.config import Invalid
from regscale.errors import RegscaleError

library = pytest.importorskip("open_clip", exc_type=ImportError)

from regscale.conditioning.open_clip import Config, build  # noqa: E402

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
TINY = {
    "embed_dim": 12,
    "vision_cfg": {
        "image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8
    },
    "text_cfg": TEXT,
}  # fmt: skip
PREPROCESSING = {"mean": [0.5] * 3, "std": [0.3] * 3, "interpolation": "bicubic"}
PROMPTS = ["a red fox", "two birds on a branch above a river", ""]


@pytest.fixture(scope="module", params=["CLIP", "CustomTextCLIP"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = getattr(library, request.param)(**TINY).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    custom = {"custom_text": True} if request.param == "CustomTextCLIP" else {}
    config = {"model_cfg": TINY | custom, "preprocess_cfg": PREPROCESSING}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return path


def made(folder, **settings):
    return build(Config(model=f"local-dir:{folder}", **{"max_length": 16, **settings}))


@torch.no_grad()
def test_pooled_is_the_librarys_embedding_and_the_end_gives_it(folder):
    conditioner = made(folder)
    found = conditioner.parse(PROMPTS)
    model = library.create_model(f"local-dir:{folder}").eval()
    ids = library.get_tokenizer(f"local-dir:{folder}")(PROMPTS)
    own = model.encode_text(ids)
    torch.testing.assert_close(found.pooled, own, rtol=0, atol=1e-5)
    tower = getattr(model, "text", model)
    last = torch.stack([found.tokens[i, n - 1] for i, n in enumerate(found.lengths)])
    torch.testing.assert_close(last @ tower.text_projection, own, rtol=0, atol=1e-4)
    assert found.tokens.shape == (3, 16, 16)
    assert found.lengths.tolist() == [5, 10, 2]


def test_another_layer_has_other_states_and_the_same_pooled_text(folder):
    a, b = made(folder).parse(PROMPTS), made(folder, layer=-2).parse(PROMPTS)
    assert torch.equal(a.pooled, b.pooled)
    assert not torch.allclose(a.tokens, b.tokens)


def test_a_long_prompt_keeps_its_end(folder, caplog):
    conditioner = made(folder, max_length=8)
    found = conditioner.parse(["one two three four five six seven eight nine"])
    assert found.lengths.tolist() == [8]
    assert "has 11 tokens, of which the first 7 are read" in caplog.text
    again = conditioner.parse(["one two three four five six"])
    torch.testing.assert_close(found.pooled, again.pooled, rtol=0, atol=1e-5)


def test_null_and_shapes(folder):
    conditioner = made(folder)
    blank = conditioner.blank(3)
    assert "encoder" not in vars(conditioner)
    like = conditioner.parse(PROMPTS)
    assert [x.shape for x in blank] == [x.shape for x in like]
    null = conditioner.null(like)
    torch.testing.assert_close(null.pooled[0], like.pooled[2], rtol=0, atol=1e-5)


def test_published_models_are_described_and_others_refused(folder):
    assert build(Config()).widths == (768, 768)
    with pytest.raises(Invalid, match=r"at most the 77 tokens"):
        build(Config(max_length=78))
    with pytest.raises(Invalid, match=r"layer: is from -3 to -1"):
        made(folder, layer=0)
    with pytest.raises(Invalid, match=r"Did you mean 'ViT-"):
        build(Config(model="ViT-L-41"))
    with pytest.raises(Invalid, match=r"pretrained: .* Did you mean 'datacomp_xl_s13b_b90k'"):
        build(Config(pretrained="datacomp_xl_s13b"))
    with pytest.raises(RegscaleError, match="cannot be loaded"):
        build(Config(model="local-dir:/no/such/folder"))
