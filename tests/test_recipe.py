"""What the sections of a run must agree on."""

import pytest

from regscale import assemble
from regscale.errors import RegscaleError
from tests.conftest import MakeConfig

SECOND = [
    "targets.b.kind=digits_vit",
    "entangle.b.slot=1",
    "align.b.depth=2",
    "align.b.projector=16",
]


def test_the_order_of_a_file_does_not_number_projectors_or_slots(tiny: MakeConfig) -> None:
    config = tiny(*SECOND)
    assert list(config.align) == ["vit", "b"]
    assert list(config.aligned) == ["b", "vit"]
    assert list(config.entangled) == ["vit", "b"]
    model = assemble.pieces(config).model
    assert [part.depth for part in model.parts.aligned] == [2, 1]
    assert [part.entangled for part in model.parts.aligned] == [1, 0]


def test_a_head_of_clean_latents_is_for_the_linear_path(tiny: MakeConfig) -> None:
    with pytest.raises(RegscaleError, match=r"model.clean_above: is for the linear path.*cosine"):
        tiny("model.clean_above=0.25", "path=cosine")
    assert tiny("model.clean_above=0.25").path == "linear"


def test_two_targets_do_not_share_a_slot(tiny: MakeConfig) -> None:
    with pytest.raises(RegscaleError, match=r"entangle: slots differ; found \[0, 0\]"):
        tiny(*SECOND, "entangle.b.slot=0")


def test_a_weight_of_0_leaves_a_target_out_altogether(tiny: MakeConfig) -> None:
    config = tiny("entangle.vit.weight=0", "align.vit.weight=0")
    parts = assemble.pieces(config)
    assert (config.entangled, config.aligned, parts.targets) == ({}, {}, {})


def test_a_negative_weight_is_refused(tiny: MakeConfig) -> None:
    with pytest.raises(RegscaleError, match=r"entangle\.vit\.weight: is not negative; found -1"):
        tiny("entangle.vit.weight=-1")
