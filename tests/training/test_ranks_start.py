"""Ranks that cannot start: each says why, and none is left (docs/faults.md)."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.training import ranks
from tests.training.ranks import LONG, Start

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.mark.parametrize("before", [ranks.broken_set_up, ranks.broken_first])
def test_a_fault_of_one_rank_before_the_first_step_is_told_by_all(
    start: Start, tmp_path: Path, before: ranks.Before
) -> None:
    """F25."""
    ended = start(tmp_path / "run", LONG, before=before)
    assert ended.statuses() == [1, 1]
    for rank in (0, 1):
        assert "Traceback (most recent call last)" in ended.said(rank)
        assert "in boom" in ended.said(rank)
        assert "ValueError: boom" in ended.said(rank)


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.learning_rate=2e-4",
        pytest.param("engine.kind=fsdp2", marks=pytest.mark.slow),
        pytest.param("model.hidden_size=64", marks=pytest.mark.slow),
    ],
)
def test_ranks_of_different_configs_refuse_each_other(
    start: Start, tmp_path: Path, change: str
) -> None:
    """F27, before any of them builds a model, which here would fail."""
    ended = start(tmp_path / "run", LONG, own={1: (change,)}, before=ranks.broken_set_up)
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        said = ended.said(rank)
        assert "the processes of this run: were started differently" in said
        assert re.search(r"config is \w+ on rank 0 and \w+ on rank 1", said)
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_port_in_use_is_told_with_what_to_do(start: Start, tmp_path: Path) -> None:
    """F26: rank 0 says so and ends at once; srun, or torchrun, then ends the others."""
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", 0))
        other.listen()
        port = int(other.getsockname()[1])
        ended = start(tmp_path / "run", LONG, port=port)
        assert ended.statuses(0) == [2]
        ended.send(signal.SIGKILL, 1)
    message = f"error: 127.0.0.1:{port}: rank 0 of 2 cannot meet the others there; found "
    assert message in ended.said(0)
    assert "MASTER_PORT chooses another port" in ended.said(0)
    assert "Traceback" not in ended.said(0)


def test_a_batch_that_does_not_divide_is_refused_before_the_start(
    start: Start, tmp_path: Path
) -> None:
    """F20."""
    ended = start(tmp_path / "run", LONG, "training.batch_size=9")
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        message = "training.batch_size: divides by the number of processes, 2; found 9"
        assert message in ended.said(rank)
    assert not (tmp_path / "run").exists()
