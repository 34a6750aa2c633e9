"""Runs of several ranks that are stopped, killed, or cannot go on (docs/faults.md)."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from regscale.checkpoint import candidates
from tests.training import ranks
from tests.training.ranks import (
    ENGINES,
    LOADER,
    LONG,
    PATIENCE_SECONDS,
    Ranks,
    Start,
    last_step,
    marker,
    steps,
)
from tests.training.test_loop import assert_same_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
# A lost rank is noticed by its loss: no limit of time would end the others while a test is patient.
NO_LIMIT = f"training.hang_seconds={10 * PATIENCE_SECONDS:.0f}"


def saves(run: Path) -> set[str]:
    """The saves under way."""
    return {path.name for path in (run / "checkpoints").glob(".tmp-*")}


def assert_stopped(ended: Ranks, reason: str) -> int:
    """Every rank with status 0, after a checkpoint of the last update and a marker."""
    assert ended.statuses() == [0, 0], ended.said(0)[-3000:]
    made = marker(ended.run)
    assert made["reason"] == reason
    assert last_step(ended.run) == made["step"]
    assert candidates(ended.run / "checkpoints")[0].name == f"step-{made['step']:08d}"
    assert not saves(ended.run)
    assert not (ended.run / "lease.json").exists()
    return int(made["step"])


def test_a_run_stopped_in_every_way_ends_as_the_undisturbed_one(
    start: Start, tmp_path: Path
) -> None:
    """F10, F21, F22, F23, F30."""
    run, often = tmp_path / "run", ("optimizer.decay_steps=500", "training.keep_last=99")

    first = start(run, *often, LONG, LOADER, "training.checkpoint_every=1000").trains(3)
    second = start(run, *often, LONG)  # F10
    assert second.statuses() == [2, 2]
    for rank in (0, 1):
        assert "another process writes to this run" in second.said(rank)
        assert f"pid {first.pids[0]} " in second.said(rank)

    (worker,) = first.workers(0)  # F21: one rank, while another waits for its data
    os.kill(worker, signal.SIGSTOP)
    before = first.settled()
    first.send(signal.SIGTERM, 1)
    time.sleep(0.2)
    os.kill(worker, signal.SIGCONT)
    assert 1 <= assert_stopped(first, "SIGTERM") - before <= 2

    third = start(run, *often, LONG, "training.checkpoint_every=5", before=ranks.slow_saves)
    third.until(lambda: saves(run), "a save is under way")
    under_way = saves(run)
    third.send(signal.SIGUSR1, 0, 1)  # F21: all ranks, during a save
    third.until(lambda: saves(run) - under_way, "the last save is under way")
    third.send(signal.SIGTERM, 0, 1)  # F30
    stopped = assert_stopped(third, "SIGUSR1")

    pictures = ("training.preview_every=4", "training.checkpoint_every=1000")
    fourth = start(run, *often, LONG, *pictures, before=ranks.slow_pictures)
    drawn = -(-(stopped + 1) // 4) * 4
    fourth.until((run / f"drawing-{drawn}").exists, "pictures are drawn")
    fourth.send(signal.SIGTERM, 0)  # F21: during pictures, of which another rank is not done
    (run / "draw").touch()
    assert drawn <= assert_stopped(fourth, "SIGTERM") <= drawn + 1

    options = (LONG, LOADER, NO_LIMIT, "training.checkpoint_every=3")
    fifth = start(run, *often, *options).trains(drawn + 6)
    fifth.send(signal.SIGKILL, 0)  # F22: the rank at which all meet
    assert fifth.statuses() == [-signal.SIGKILL, 1]
    assert fifth.left() == []  # F23: neither do its workers stay

    end = steps(last_step(run) + 3)
    start(run, *often, end).finished()
    start(tmp_path / "whole", *often, end).finished()
    assert_same_run(run, tmp_path / "whole")
    numbers = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
def test_a_signal_while_blocks_are_compiled_stops_after_the_first_updates(
    start: Start, tmp_path: Path
) -> None:
    """F21."""
    options = ("engine.compile=true", "model.depth=1", LONG)
    run = start(tmp_path / "run", *options, before=ranks.told_of_compiling)
    run.until((tmp_path / "run/compiling-1").exists, "rank 1 compiles")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    run.send(signal.SIGTERM, 1)
    assert 1 <= assert_stopped(run, "SIGTERM") <= 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_takes_the_others_along(
    start: Start, tmp_path: Path, engine: str, victim: int
) -> None:
    """F22, where weights lie on the lost rank."""
    run = start(tmp_path / "run", *ENGINES[engine], LONG, LOADER, NO_LIMIT).trains(9)
    run.send(signal.SIGKILL, victim)
    ended = run.statuses()
    assert (ended[victim], ended[1 - victim]) == (-signal.SIGKILL, 1)
    assert run.left() == []


@pytest.mark.parametrize(
    "engine", [n if n == "ddp" else pytest.param(n, marks=pytest.mark.slow) for n in ENGINES]
)
def test_updates_that_stay_not_finite_end_the_run_on_all_ranks(
    start: Start, tmp_path: Path, engine: str
) -> None:
    """F12: the loss of one rank is not a number from the fourth update on."""
    options = (*ENGINES[engine], "training.max_skipped=3", steps(20))
    ended = start(tmp_path / "run", *options, before=ranks.not_finite)
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        assert "step 6: 3 updates in a row were skipped" in ended.said(rank)
        assert re.search(r"found not finite: (loss|grad)\b", ended.said(rank))
