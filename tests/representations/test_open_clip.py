"""Image embeddings of open_clip: its own forward and its own transform on a tiny saved model."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from regscale.config import Invalid
from regscale.errors import RegscaleError

library = pytest.importorskip("open_clip")

from regscale.representations.open_clip import Config, build  # noqa: E402

SIDE = 32
TINY = {
    "embed_dim": 12,
    "vision_cfg": {
        "image_size": SIDE, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8
    },
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip
PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2], "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(0)
    model = library.CLIP(**TINY).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    config = {"model_cfg": TINY, "preprocess_cfg": PREPROCESSING}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def images():
    chance = torch.Generator().manual_seed(1)
    return torch.randint(50, 206, (2, 3, 40, 40), generator=chance).to(torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("size", [None, 48])
def test_the_token_is_the_librarys_image_embedding(folder, images, size):
    target = build(Config(model=f"local-dir:{folder}", size=size))
    features = target(images)
    model = library.create_model(f"local-dir:{folder}", force_image_size=size).eval()
    pixels = target.preprocessing(images, target.input_size(40, 40))
    assert pixels.shape[-1] == (size or SIDE)
    torch.testing.assert_close(features.tokens[:, 0], model.encode_image(pixels), rtol=0, atol=1e-5)
    assert features.tokens.shape == (2, 1, target.width)
    assert features.patches is None
    assert target.grid(40, 40) is None
    assert target(images[..., :30]).tokens.shape == (2, 1, 12)


def test_the_input_is_the_librarys_own_up_to_its_rounding(folder, images):
    target = build(Config(model=f"local-dir:{folder}"))
    _, _, transform = library.create_model_and_transforms(f"local-dir:{folder}")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    given = torch.stack([transform(picture) for picture in pictures])
    ours = target.preprocessing(images, (SIDE, SIDE))
    level = 1 / 255 / min(PREPROCESSING["std"])  # Pillow rounds to whole levels, twice
    assert (ours - given).abs().max() < 1.15 * level


def test_bf16_and_autocast_and_identity(folder, images):
    config = Config(model=f"local-dir:{folder}")
    exact, again = build(config), build(config)
    coarse = build(replace(config, dtype="bf16"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(again(images).tokens, exact(images).tokens)
    likeness = torch.cosine_similarity(coarse(images).tokens, exact(images).tokens, dim=-1)
    assert likeness.min() > 0.99  # bf16 has 8 bits
    assert exact.identity == again.identity != coarse.identity
    assert exact.identity.startswith("open_clip-")


def test_published_models_are_described_without_weights():
    target = build(Config())
    assert (target.width, target.num_tokens, target.shape.size) == (768, 1, 224)
    assert "model" not in vars(target)
    assert build(Config(model="ViT-SO400M-14-SigLIP-384", pretrained="webli")).width == 1152


def test_what_open_clip_does_not_know_is_refused(tmp_path, folder):
    with pytest.raises(Invalid, match=r"model: names a model; found ViT-L-41\. Did you mean 'ViT-"):
        build(Config(model="ViT-L-41"))
    with pytest.raises(Invalid, match=r"pretrained: .* Did you mean 'datacomp_xl_s13b_b90k'"):
        build(Config(pretrained="datacomp_xl_s13b"))
    with pytest.raises(RegscaleError, match=r"open_clip: model local-dir.* cannot be loaded"):
        build(Config(model=f"local-dir:{tmp_path}"))
    config = (folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(RegscaleError, match="cannot be loaded; found Required pretrained weights"):
        _ = build(Config(model=f"local-dir:{tmp_path}")).model
