"""Extractors on small random weights in the published formats, against the libraries themselves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextV2Config,
    ConvNextV2Model,
    Dinov2Config,
    Dinov2Model,
    ViTMAEConfig,
    ViTMAEModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from regscale.config import Invalid, kind_of, kinds, load_layers, override_layers, plugin
from regscale.errors import RegscaleError
from regscale.evaluation.extractors import collect
from regscale.evaluation.suites.imagenet256 import built

PACKAGE = "regscale.evaluation.extractors"
IMAGES = torch.randint(0, 256, (3, 3, 40, 40), generator=torch.manual_seed(0)).to(torch.uint8)
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def extractor(kind: str, **values: Any) -> Any:
    try:
        module = plugin(PACKAGE, kind)
    except (RegscaleError, RuntimeError) as error:  # a package, or torchvision without operators
        pytest.skip(str(error))
    return module.build(module.Config(**values))


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_a_kind_defines_a_frozen_config_and_build(kind: str) -> None:
    extractor(kind)
    module = plugin(PACKAGE, kind)
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    assert "__slots__" in module.Config.__dict__
    assert kind_of(module.Config()) == kind


# inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of random numbers under torch-fidelity's names, scaled to keep activations."""
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    shapes = _shapes(FeatureExtractorInceptionV3)
    chance = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1)
        elif name.endswith("running_var"):
            state[name] = torch.ones(shape)
        elif len(shape) < 2:
            state[name] = 0.1 * torch.randn(shape, generator=chance) + name.endswith("bn.weight")
        else:
            fan_in = shape[1:].numel()
            state[name] = torch.randn(shape, generator=chance) * (2 / fan_in) ** 0.5
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def _shapes(source: Any) -> dict[str, torch.Size]:
    """Names and shapes of the port's state dict, which it only has after reading one."""
    found: dict[str, torch.Size] = {}

    class Shapes(source):  # type: ignore[misc]
        def load_state_dict(self, _: object) -> None:
            found.update({n: v.shape for n, v in self.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        Shapes("inception", ["2048"], feature_extractor_weights_path="none")
    return found


def test_pool_and_logits_are_those_of_torch_fidelity(weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    pool, logits = theirs(IMAGES)
    found = extractor("inception", weights=str(weights))(IMAGES)
    assert torch.equal(found.features, pool)
    assert found.features.shape == (3, 2048)
    assert found.features.std(0).mean() > 0  # the pictures are told apart
    # here the product is taken in float64
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    assert found.logits.shape == (3, 1008)


def test_spatial_features_are_the_first_seven_channels_in_the_order_of_the_graph(
    weights: Path,
) -> None:
    inception = extractor("inception", weights=str(weights))
    outputs: list[Tensor] = []
    hook = inception.model.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    spatial = inception(IMAGES).spatial
    hook.remove()
    assert spatial.shape == (3, 2023)
    assert len(outputs) == 2  # once in the block itself
    assert torch.equal(outputs[0], outputs[1])
    # TensorFlow's tensors are (B, rows, columns, channels)
    by_place = spatial.reshape(3, 17, 17, 7)
    assert torch.equal(by_place[1, 4, 9], outputs[1][1, :7, 4, 9])
    assert spatial.min() >= 0  # after the ReLU


def test_clean_resizing_is_that_of_clean_fid(weights: Path) -> None:
    graph = extractor("inception", weights=str(weights))
    clean = extractor("inception", weights=str(weights), resize="clean")
    picture = IMAGES[0].permute(1, 2, 0).numpy()
    resized = np.stack(
        [
            Image.fromarray(picture[..., c].astype(np.float32)).resize((299, 299), Image.BICUBIC)
            for c in range(3)
        ]
    ).clip(0, 255)
    assert torch.equal(clean._resize(IMAGES[:1])[0], torch.from_numpy(resized))
    assert not torch.equal(clean(IMAGES[:1]).features, graph(IMAGES[:1]).features)
    assert clean.identity != graph.identity  # so that their figures are not compared


def test_inception_is_identified_by_its_weights(weights: Path, tmp_path: Path) -> None:
    before = extractor("inception", weights=str(weights)).identity
    assert before.startswith("inception-")
    assert extractor("inception", weights=str(weights)).identity == before
    state = torch.load(weights, weights_only=True)
    state["fc.weight"][0, 0] += 1
    torch.save(state, tmp_path / "other.pth")
    assert extractor("inception", weights=str(tmp_path / "other.pth")).identity != before


def test_weights_that_are_absent_or_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match=r"absent\.pth: cannot be loaded.*local copy of https"):
        _ = extractor("inception", weights=str(tmp_path / "absent.pth")).model
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(RegscaleError, match=r"other\.pth: cannot be loaded"):
        _ = extractor("inception", weights=str(tmp_path / "other.pth")).model


def test_inception_is_exact_where_its_caller_is_not(weights: Path) -> None:
    inception = extractor("inception", weights=str(weights))
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    kept = [flag.allow_tf32 for flag in flags]
    with torch.autocast("cpu", torch.bfloat16):
        found = inception(IMAGES[:1]).features
    assert torch.equal(found, inception(IMAGES[:1]).features)
    assert [flag.allow_tf32 for flag in flags] == kept


# dinov2


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(patch_size=14, **TINY)).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=MEAN,
        image_std=STD,
        resample=3,
    ).save_pretrained(folder)
    return folder


def test_dinov2_gives_the_class_token_of_the_whole_picture(dinov2: Path) -> None:
    side = 42
    token = extractor("dinov2", model=str(dinov2), size=side)(IMAGES).features
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in IMAGES]
    levels = np.stack([np.asarray(p.resize((side, side), Image.BICUBIC)) for p in pictures])
    pixels = (torch.from_numpy(levels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    model = Dinov2Model.from_pretrained(dinov2).eval()
    with torch.no_grad():
        expected = model(pixels.permute(0, 3, 1, 2)).pooler_output
    # pixels are rounded once more in the processor's order of operations
    torch.testing.assert_close(token, expected, rtol=1e-4, atol=1e-5)


def test_dinov2_is_identified_by_its_size(dinov2: Path) -> None:
    a, b = (extractor("dinov2", model=str(dinov2), size=side) for side in (28, 42))
    assert a.identity.startswith("dinov2-")
    assert a.identity != b.identity
    assert a.width == 16


# clip

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP whose words are letters."""
    folder = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    vocabulary = {word: i for i, word in enumerate(words)}
    text = TINY | {
        "vocab_size": len(words),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "max_position_embeddings": 12,
    }
    del text["image_size"]
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=TINY | {"patch_size": 14}, projection_dim=12)
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": words[0],
                "eos_token": words[1],
                "unk_token": words[1],
                "pad_token": words[1],
            }
        )
    )
    return folder


def test_clip_embeds_pictures_and_captions_as_the_library_does(clip: Path) -> None:
    ours = extractor("clip", model=str(clip))
    captions = ["a cat", "dog", "a cat and a dog and a bird"]  # the last is cut at 12 tokens
    images, texts = ours(IMAGES).features, ours.texts(captions)
    model = CLIPModel.from_pretrained(clip).eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in IMAGES]
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(pictures, return_tensors="pt")
    tokens = ours.tokenizer(
        captions, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    assert tokens["input_ids"].shape == (3, 12)
    with torch.no_grad():
        found = model(**tokens, **pixels)
    for mine, theirs in ((images, found.image_embeds), (texts, found.text_embeds)):
        assert mine.shape == (3, 12)
        unit = mine / mine.norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit, theirs, rtol=1e-5, atol=1e-6)
    assert ours.width == 12


# convnextv2


def test_convnextv2_gives_the_pooled_state_of_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ConvNextV2Model(ConvNextV2Config(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1]))
    model.eval().save_pretrained(tmp_path)
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875)
    processor.save_pretrained(tmp_path)
    ours = extractor("convnextv2", model=str(tmp_path))
    ready = processor(list(IMAGES.permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    with torch.no_grad():
        expected = model(ready["pixel_values"]).pooler_output
    torch.testing.assert_close(ours(IMAGES).features, expected, rtol=1e-5, atol=1e-6)
    assert ours.width == 16
    assert ours.identity.startswith("convnextv2-")


# target


def target(kind: str, features: str = "tokens", **values: Any) -> Any:
    found = plugin("regscale.representations", kind).Config(**values)
    return extractor("target", target=found, features=features)


def test_a_target_judges_by_the_mean_of_its_tokens_or_patches() -> None:
    pictures = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.manual_seed(0))
    values = {"token": "mean", "rows": 2}
    model = plugin("regscale.representations", "shapes_vit")
    found = model.build(model.Config(**values))(pictures.to(torch.uint8))
    assert found.tokens.shape[1] == 4
    made = {}
    for features, expected in (("tokens", found.tokens), ("patches", found.patches)):
        ours = target("shapes_vit", features, **values)
        torch.testing.assert_close(ours(pictures.to(torch.uint8)).features, expected.mean(1))
        assert ours.width == expected.shape[2]
        made[features] = ours.identity
    assert all(identity.startswith("shapes_vit_target-") for identity in made.values())
    assert made["tokens"] != made["patches"]
    assert made["tokens"] != target("shapes_vit").identity


def test_a_pretrained_target_judges_in_fp32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTMAEConfig(patch_size=14, mask_ratio=0.0, **TINY)
    model = ViTMAEModel(config).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    pictures = IMAGES[..., :28, :28]
    pixels = (pictures.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = model(pixels, noise=torch.arange(4.0).expand(3, -1)).last_hidden_state[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = target("mae", model=str(tmp_path))(pictures).features
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_target_that_computes_nothing_or_has_no_patches_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Invalid, match=r"target.kind: is an encoder.*found stored"):
        target("stored")
    kind = plugin("regscale.representations", "shapes_vit")
    monkeypatch.setattr(kind.ShapesTarget, "grid", lambda *_: None)
    with pytest.raises(
        RegscaleError, match="target shapes_vit: features: is what the target has; found patches"
    ):
        target("shapes_vit", "patches")


def test_a_suite_takes_a_target_by_name() -> None:
    words = "references.all=a.npz extractors.a.kind=target extractors.a.target.kind=shapes_vit"
    schema = plugin("regscale.evaluation.suites", "imagenet256").Config
    (made,) = built(load_layers(schema, override_layers(words.split())).extractors).values()
    assert made.identity == target("shapes_vit").identity


def test_an_extractor_that_cannot_be_built_is_told_by_its_name(dinov2: Path) -> None:
    small = plugin("regscale.representations", "dinov2").Config(model=str(dinov2), size=3)
    config = plugin(PACKAGE, "target").Config(target=small)
    with pytest.raises(Invalid, match=r"extractors\.a\.size: is a multiple of the patch"):
        built({"a": config})


def test_a_model_that_is_absent_is_refused(tmp_path: Path) -> None:
    for kind in ("dinov2", "clip", "convnextv2"):
        with pytest.raises(RegscaleError, match=f"{kind}: model .* cannot be loaded"):
            extractor(kind, model=str(tmp_path / "absent"))(IMAGES)


def test_collected_features_do_not_depend_on_the_batches(dinov2: Path) -> None:
    ours = extractor("dinov2", model=str(dinov2), size=28)
    whole, parts = collect(ours, [IMAGES]), collect(ours, IMAGES.split(2))
    torch.testing.assert_close(parts.features, whole.features, rtol=1e-5, atol=1e-6)
    assert whole.evaluator == ours.identity
    assert len(parts) == 3
    with pytest.raises(RegscaleError, match="no pictures"):
        collect(ours, [])


def test_inception_collects_what_sfid_and_the_inception_score_need(weights: Path) -> None:
    found = collect(extractor("inception", weights=str(weights)), IMAGES.split(2))
    assert found.spatial is not None
    assert found.logits is not None
    assert (found.spatial.shape, found.logits.shape) == ((3, 2023), (3, 1008))
