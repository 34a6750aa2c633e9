"""Sizes are read from weights, and what weights do not tell is asked for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from regscale.errors import RegscaleError
from regscale.models.sit import SIZES
from regscale.published import Architecture, architecture, num_heads, run_values, shapes

SHAPES = json.loads((Path(__file__).parents[1] / "reference/state_dict_shapes.json").read_text())
REG = Architecture(
    depth=3,
    hidden_size=64,
    patch_size=2,
    channels=4,
    mlp_hidden=256,
    num_labels=11,
    latent_side=8,
    token_width=32,
    projectors=((48, 32),),
)
OTHERS = {
    "reg": REG,
    "reg with normalised queries": replace(REG, head_width=16),
    "repa": replace(REG, token_width=None),
    "repa with two encoders": replace(REG, token_width=None, projectors=((48, 32), (40, 16))),
    "sit of single width": replace(REG, token_width=None, projectors=()),
    "official sit": replace(REG, token_width=None, projectors=(), doubled=True),
    "reg without projectors": replace(REG, projectors=()),
    "without places": replace(REG, latent_side=None),
    "one pixel a patch, 512 images": replace(REG, patch_size=1, latent_side=64),
}


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_published_sizes_are_told_from_the_published_shapes(size: str) -> None:
    published = {name: tuple(shape) for name, shape in SHAPES[f"SiT-{size}/2"]["state"].items()}
    model = architecture(published, "file")
    assert (model.depth, model.hidden_size, num_heads(model, None, {}, "file")) == SIZES[size]
    assert (model.patch_size, model.channels, model.latent_side) == (2, 4, 32)
    assert (model.num_labels, model.token_width, model.projectors) == (1001, 768, ((2048, 768),))
    assert not model.doubled
    assert list(shapes(model).items()) == list(published.items())  # the optimizer counts by order


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
def test_an_architecture_is_what_its_shapes_tell(model: Architecture) -> None:
    assert architecture(shapes(model), "file") == model


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("wg_norm.weight", None, "without wg_norm.weight"),
        ("blocks.1.mlp.fc2.bias", None, "without blocks.1.mlp.fc2.bias"),
        ("x_embedder.proj.weight", None, "has no x_embedder.proj.weight of 4 sides"),
        ("blocks.0.txt_kv.weight", (4, 4), "besides blocks.0.txt_kv.weight"),
        ("cls_projectors2_slot1.weight", (64, 8), "besides cls_projectors2_slot1.weight"),
        ("blocks.2.attn.qkv.weight", (64, 64), r"blocks.2.attn.qkv.weight \(64, 64\), not \(192"),
        ("pos_embed", (1, 19, 64), "rows for a square of patches; found 18 patches"),
        ("final_layer.linear.weight", (24, 64), "has 16 or 32 rows; found 24"),
        ("x_embedder.proj.weight", (64, 4, 2, 1), "patches are square; found 2x1"),
    ],
)
def test_every_parameter_has_to_be_accounted_for(
    name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    found = shapes(REG) | ({} if shape is None else {name: shape})
    if shape is None:
        del found[name]
    with pytest.raises(RegscaleError, match=message):
        architecture(found, "file")


def test_heads_come_from_the_option_the_arguments_or_a_known_width() -> None:
    assert num_heads(REG, 4, {"num_heads": 8}, "file") == 4
    assert num_heads(REG, None, {"num_heads": 8}, "file") == 8
    assert num_heads(replace(REG, hidden_size=1152), None, {}, "file") == 16
    assert num_heads(replace(REG, head_width=16), None, {}, "file") == 4
    with pytest.raises(RegscaleError, match=r"attention heads; found width 64.*--num-heads N"):
        num_heads(REG, None, {}, "file")
    with pytest.raises(RegscaleError, match=r"width 16 of 64; found 8.*give 4"):
        num_heads(replace(REG, head_width=16), 8, {}, "file")


def values(model: Architecture, args: dict[str, object], **given: int | None) -> dict[str, object]:
    asked = {"alignment_depth": None, "image_size": None} | given
    return run_values(model, args, group={}, num_heads=4, where="file", **asked)  # type: ignore[arg-type]


def test_the_depth_of_alignment_is_asked_for_with_the_papers_values() -> None:
    with pytest.raises(RegscaleError, match=r"--alignment-depth N \(the paper: 4 for B, 8 for L"):
        values(REG, {})
    with pytest.raises(RegscaleError, match=r"is a block of the model, 1 to 3; found 4"):
        values(REG, {"encoder_depth": 4})
    with pytest.raises(RegscaleError, match="these weights have no projector"):
        values(OTHERS["sit of single width"], {}, alignment_depth=2)
    assert values(REG, {"encoder_depth": 2}, alignment_depth=3)["align"] == {
        "vision": {"depth": 3, "projector": 48, "weight": 0.5}
    }


def test_the_image_size_is_asked_for_only_without_places() -> None:
    reads = {"encoder_depth": 2}
    assert values(REG, reads)["data"] == {"kind": "image_folder", "size": 64}
    assert values(OTHERS["without places"], reads | {"resolution": 256})["data"]["size"] == 256  # type: ignore[index]
    with pytest.raises(RegscaleError, match="Give --image-size N"):
        values(OTHERS["without places"], reads)


@pytest.mark.parametrize(
    ("encoder", "width", "target"),
    [
        ("dinov2-vit-b", 768, {"kind": "dinov2", "model": "facebook/dinov2-base"}),
        ("dinov2-vit-l", 1024, {"kind": "dinov2", "model": "facebook/dinov2-large"}),
        (
            "dinov2reg-vit-b",
            768,
            {"kind": "dinov2", "model": "facebook/dinov2-with-registers-base"},
        ),
        (None, 1536, {"kind": "dinov2", "model": "facebook/dinov2-giant"}),
        ("clip-vit-L", 1024, {"kind": "stored", "width": 1024}),
        ("dinov2-vit-b", 32, {"kind": "stored", "width": 32}),
    ],
)
def test_a_target_is_dinov2_only_where_name_and_width_are_its_own(
    encoder: str | None, width: int, target: dict[str, object]
) -> None:
    model = replace(REG, token_width=width, projectors=((48, width),))
    made = values(model, {"encoder_depth": 2, "enc_type": encoder, "cls": 0.01})
    assert made["targets"] == {"vision": target}
    assert made["entangle"] == {"vision": {"weight": 0.01}}


def test_a_trainer_that_regscale_does_not_have_is_refused() -> None:
    for args, message in (
        ({"path_type": "vp"}, "args.path_type: is one of linear, cosine, gvp; found vp"),
        ({"prediction": "noise"}, "args.prediction: regscale's models predict velocities"),
        ({"weighting": "cubic"}, "args.weighting: is one of uniform, lognormal"),
    ):
        with pytest.raises(RegscaleError, match=message):
            values(REG, {"encoder_depth": 2, **args})
