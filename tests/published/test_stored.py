"""The target of an imported run whose encoder regscale does not know."""

import pytest
import torch

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.representations.stored import Config, build


def test_a_stored_target_has_a_width_and_a_grid_but_computes_nothing() -> None:
    target = build(Config(width=32))
    assert (target.width, target.num_tokens) == (32, 1)
    assert target.grid(256, 512) == (16, 32)
    assert build(Config(patch_size=None)).grid(256, 256) is None
    with pytest.raises(RegscaleError, match="takes its features from the data and cannot compute"):
        target(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("key", ["width", "num_tokens", "patch_size"])
def test_sizes_are_positive(key: str) -> None:
    with pytest.raises(Invalid, match=key):
        Config(**{key: 0})
