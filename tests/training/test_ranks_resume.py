"""Runs of several ranks that go on after a kill, past damage, on other engines (docs/faults.md)."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.training import ranks
from tests.training.ranks import COMMON, ENGINES, LOADER, LONG, Nursery, Ranks, Start, fed, steps
from tests.training.test_loop import assert_same_run, damage, final_state

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
STEPS = 28  # twenty after `begun`


@pytest.fixture(scope="module")
def whole(nursery: Nursery, file: Path) -> Path:
    """The undisturbed run on two ranks."""
    run = file.parent / "runs" / "whole"
    with Ranks(nursery, file, run, *COMMON, steps(STEPS), before=ranks.watched) as started:
        started.finished()
    assert sorted(fed(run)) == list(range(12 * STEPS))
    return run


@pytest.fixture(scope="module")
def begun(nursery: Nursery, file: Path) -> Path:
    """The same up to the update before its alignment ends."""
    run = file.parent / "runs" / "begun"
    with Ranks(nursery, file, run, *COMMON, steps(8), before=ranks.watched) as started:
        started.finished()
    return run


def assert_close_run(made: Path, want: Path) -> None:
    """fp32: sums in another order, in steps of at most 1e-4."""
    (tensors, losses), (others, other_losses) = final_state(made), final_state(want)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-6, msg=name)
    assert losses.keys() == other_losses.keys()
    for step, figures in losses.items():
        assert figures["learning_rate"] == other_losses[step]["learning_rate"]
        assert figures == pytest.approx(other_losses[step], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_killed_in_a_save_goes_on_to_the_bits_of_the_undisturbed_one(
    start: Start, tmp_path: Path, engine: str
) -> None:
    """F1, F9 and F14 on every engine: weights, averages, moments and figures, across the end of
    an alignment. The newest checkpoint that the kill left is damaged, so the one before is taken.
    Three ranks, for sums of two do not depend on their order."""
    options = (*ENGINES[engine], "training.checkpoint_every=2", "align.vit.stop_step=3")
    size = 3 if engine == "ddp" else 2
    run = tmp_path / "parts"
    killed = start(run, *options, LONG, size=size, before=ranks.killed_in_a_save)
    assert killed.statuses() == [1, -signal.SIGKILL, 1][:size]
    damage(run, 4)
    last = start(run, *options, steps(8), size=size).finished()
    assert "damaged checkpoint passed over" in last.said(0)
    start(tmp_path / "whole", *options, steps(8), size=size).finished()
    assert_same_run(run, tmp_path / "whole")


def test_a_run_that_changes_engine_and_number_of_ranks_is_the_same_run(
    start: Start, whole: Path, begun: Path, tmp_path: Path
) -> None:
    """F14."""
    run = shutil.copytree(begun, tmp_path / "parts")
    for kind, size, count in (("fsdp2", 3, 14), ("single", 1, STEPS)):
        options = {"size": size, "before": ranks.watched}
        start(run, f"engine.kind={kind}", LOADER, steps(count), **options).finished()
    assert fed(run) == fed(whole)
    assert_close_run(run, whole)


@pytest.mark.slow
def test_a_run_goes_through_all_engines(start: Start, whole: Path, tmp_path: Path) -> None:
    """F14."""
    run, counts = tmp_path / "parts", (6, 12, 17, 22, STEPS)
    engines = (("ddp", 2), ("zero3", 3), ("fsdp2", 2), ("zero1", 3), ("zero2", 2))
    for (engine, size), count in zip(engines, counts, strict=True):
        options = {"size": size, "before": ranks.watched}
        start(run, *ENGINES[engine], steps(count), **options).finished()
    assert fed(run) == fed(whole)
    assert_close_run(run, whole)


def test_no_rank_resumes_as_another_run(start: Start, begun: Path, tmp_path: Path) -> None:
    """F28."""
    run = shutil.copytree(begun, tmp_path / "parts")
    ended = start(run, steps(STEPS), "seed=1")
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        assert "was made with another seed; found seed: 0 -> 1" in ended.said(rank)
        assert "Traceback" not in ended.said(rank)
