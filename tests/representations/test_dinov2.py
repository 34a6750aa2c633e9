"""DINOv2 fed by REG's recipe: the recorded numbers, and the library's own forward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.representations.dinov2 import Config, build, encoder_input, resample_positions

REFERENCE = Path(__file__).parents[1] / "reference" / "dinov2_recipe.safetensors"
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
KINDS = {
    "plain": (Dinov2Model, Dinov2Config(image_size=56, layerscale_value=0.7, **TINY)),
    "registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(image_size=56, num_register_tokens=3, **TINY),
    ),
}


@pytest.fixture(scope="module")
def recorded():
    return load_file(REFERENCE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models whose parameters are all random, so that each of them is seen."""
    root = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    for name, (kind, config) in KINDS.items():
        model = kind(config)
        model.requires_grad_(False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.embeddings.patch_embeddings.projection.weight.mul_(0.05)  # leaves the rest a say
        model.save_pretrained(root / name)
    return {name: str(root / name) for name in KINDS}


@pytest.fixture(scope="module")
def images():
    chance = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=chance)


def test_the_encoders_input_is_the_recorded_one(recorded):
    pixels = encoder_input(recorded["image"], (224, 224))
    rows, mean = recorded["encoder_input_rows_100_108"], recorded["encoder_input_mean"]
    torch.testing.assert_close(pixels[:, :, 100:108], rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(pixels.mean((2, 3)), mean, rtol=0, atol=1e-5)


def test_an_image_of_the_encoders_size_is_normalised_as_the_librarys_processor_does(images):
    """With the values of DINOv2's preprocessor_config.json; it resizes otherwise than REG."""
    values = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    sides = {"height": 64, "width": 64}
    processor = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size=sides, **values)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    given = torch.tensor(np.stack(processor(pictures)["pixel_values"]))
    torch.testing.assert_close(encoder_input(images, (64, 64)), given, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [16, 32, 37])
def test_positions_are_the_recorded_ones(recorded, side):
    table = resample_positions(recorded["pos_embed_37"], (side, side))
    torch.testing.assert_close(table, recorded[f"pos_embed_{side}"], rtol=0, atol=1e-5)


def test_the_class_row_of_the_positions_is_kept(recorded):
    table = recorded["pos_embed_37"]
    assert torch.equal(resample_positions(table, (5, 9))[:, 0], table[:, 0])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_are_the_librarys_where_the_table_fits(folders, images, kind):
    target = build(Config(model=folders[kind]))  # 64 pixels give 56, the table's own 4x4
    features = target(images)
    library = KINDS[kind][0].from_pretrained(folders[kind], dtype=torch.float32).eval()
    hidden = library(encoder_input(images, (56, 56))).last_hidden_state
    registers = hidden.shape[1] - 1 - 16
    assert registers == {"plain": 0, "registers": 3}[kind]
    torch.testing.assert_close(features.tokens, hidden[:, :1], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.patches, hidden[:, 1 + registers :], rtol=0, atol=1e-5)


@torch.no_grad()
def test_on_another_grid_the_table_is_resampled_by_the_recipe(folders, images):
    target = build(Config(model=folders["plain"], size=28))
    library = Dinov2Model.from_pretrained(folders["plain"], dtype=torch.float32).eval()
    pixels = encoder_input(images, (28, 28))
    ours = target(images)
    assert (library(pixels).last_hidden_state[:, 1:] - ours.patches).abs().max() > 1e-2
    table = library.embeddings.position_embeddings
    library.embeddings.position_embeddings = torch.nn.Parameter(resample_positions(table, (2, 2)))
    hidden = library(pixels).last_hidden_state  # the table fits, so it is taken as it is
    torch.testing.assert_close(ours.tokens, hidden[:, :1], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.patches, hidden[:, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_blocks_give_fp32_features_near_the_exact_ones(folders, images, kind):
    exact = build(Config(model=folders[kind]))(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = build(Config(model=folders[kind]))(images)
    coarse = build(Config(model=folders[kind], dtype="bf16"))(images)
    assert torch.equal(again.patches, exact.patches)  # autocast changes nothing
    assert coarse.patches.dtype == torch.float32
    likeness = torch.cosine_similarity(coarse.patches, exact.patches, dim=-1)
    assert likeness.min() > 0.99  # bf16 has 8 bits


@pytest.mark.parametrize(
    ("name", "width"),
    [("dinov2-small", 384), ("dinov2-base", 768), ("dinov2-with-registers-giant", 1536)],
)
def test_published_models_are_described_without_weights(name, width):
    target = build(Config(model=f"facebook/{name}"))
    assert (target.width, target.num_tokens) == (width, 1)
    assert target.grid(256, 256) == (16, 16)
    assert target.grid(512, 512) == (32, 32)
    assert target.grid(256, 320) == (16, 20)
    assert "model" not in vars(target)


def test_a_folder_is_described_without_weights(folders):
    target = build(Config(model=folders["registers"], size=42))
    assert (target.width, target.grid(64, 64)) == (16, (3, 3))
    assert "model" not in vars(target)


def test_identity_is_of_weights_and_recipe_alone(folders):
    first, again = (build(Config(model=folders["plain"])) for _ in range(2))
    again.to(torch.device("cpu"))
    others = [
        Config(model=folders["registers"]),
        Config(model=folders["plain"], size=28),
        Config(model=folders["plain"], dtype="bf16"),
    ]
    assert first.identity == again.identity
    assert len({first.identity, *[build(other).identity for other in others]}) == 4


def test_the_mean_of_the_patches_can_be_the_token(folders, images):
    target = build(Config(model=folders["registers"], token="mean"))
    plain = build(Config(model=folders["registers"]))
    features, expected = target(images), plain(images)
    assert torch.equal(features.patches, expected.patches)
    torch.testing.assert_close(features.tokens[:, 0], expected.patches.mean(1))
    assert target.identity != plain.identity


@torch.no_grad()
def test_registers_can_be_tokens_behind_the_class_token(folders, images):
    target = build(Config(model=folders["registers"], token="registers", size=56))
    plain = build(Config(model=folders["registers"], size=56))
    assert target.num_tokens == 4
    features, expected = target(images), plain(images)
    assert torch.equal(features.tokens[:, :1], expected.tokens)
    assert torch.equal(features.patches, expected.patches)
    pixels = encoder_input(images, (56, 56))
    hidden = KINDS["registers"][0].from_pretrained(folders["registers"])(pixels).last_hidden_state
    torch.testing.assert_close(features.tokens, hidden[:, :4], rtol=0, atol=2e-5)
    assert target.identity != plain.identity
    published = Config(model="facebook/dinov2-with-registers-large", token="registers")
    assert build(published).num_tokens == 5
    with pytest.raises(Invalid, match=r"token: .*the model has no registers; found registers"):
        build(Config(model=folders["plain"], token="registers"))


def test_what_is_no_dinov2_is_refused(tmp_path, folders):
    with pytest.raises(RegscaleError, match=r"dinov2: model .*none: cannot be loaded"):
        build(Config(model=str(tmp_path / "none")))
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(RegscaleError, match=r"is not of type dinov2 or .*; found vit"):
        build(Config(model=str(tmp_path / "vit")))
    with pytest.raises(Invalid, match=r"multiple of the patch size 14; found 60\. Try 56"):
        build(Config(model=folders["plain"], size=60))


def test_missing_weights_are_not_made_up(tmp_path):
    kind, config = KINDS["plain"]
    model = kind(config)
    weights = {n: t for n, t in model.state_dict().items() if n != "layernorm.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(RegscaleError, match=r"weights without layernorm\.weight"):
        _ = build(Config(model=str(tmp_path))).model
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RegscaleError, match="cannot be loaded"):
        _ = build(Config(model=str(tmp_path))).model
