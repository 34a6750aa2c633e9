"""A run that starts from the weights of another starts alike on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regscale.published import Architecture
from tests.parallel import cases
from tests.parallel.conftest import Runs
from tests.published.conftest import _state

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
SIZES = {"depth": 2, "hidden_size": 32, "patch_size": 8, "channels": 3, "mlp_hidden": 128}
GIVEN = (
    "data={kind: shapecaps, num_samples: 64}",
    "conditioning={kind: words}",
    "autoencoder.channels=3",
    "targets=null",
    "entangle=null",
    "align=null",
    "model={patch_size: 8, text: gated}",
)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_every_engine_starts_from_the_same_bits(runs: Runs, tmp_path: Path, engine: str) -> None:
    """Of a class-conditional file, with a bias that is a row of its label table."""
    model = Architecture(**SIZES, num_labels=11, latent_side=32)
    torch.save(_state(model), tmp_path / "sit.pt")
    begun = (*GIVEN, f"init_from.path={tmp_path / 'sit.pt'}")
    (fresh,) = runs(1, cases.trained, "single", *GIVEN, steps=2)
    (want,) = runs(1, cases.trained, "single", *begun, steps=2)
    assert want["start"] != fresh["start"]
    for made in runs(2, cases.trained, engine, *begun, steps=2):
        assert made["start"] == want["start"]
        assert made["losses"] == pytest.approx(want["losses"], rel=1e-5)  # sums in another order
