"""The benchmark of a save in the background."""

from pathlib import Path

import torch

from benchmarks.checkpoint_plan import shapes_of, stall


def test_a_stall_is_measured_beside_a_save_that_is_waited_for(tmp_path: Path) -> None:
    figures = stall(shapes_of(16, 2), tmp_path, 2, torch.device("cpu"))
    assert figures["state_bytes"] == 4 * 4 * figures["parameters"]
    assert 0 < figures["stall_seconds"] < figures["background_seconds"]
    assert figures["ratio"] > 0
