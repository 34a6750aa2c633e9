"""F1 on two ranks: whichever is killed, and whenever in a save, a whole checkpoint stays."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from regscale.checkpoint import newest
from regscale.checkpoint.format import no_phase
from regscale.cluster import Cluster, connect, join
from regscale.training.saver import RankLost, Saver
from tests.checkpoint.conftest import KillAt, end_child, start_child
from tests.training.test_saver import assert_intact, pieces, record

pytestmark = pytest.mark.distributed

LATE = ("renamed", "purge", "deleted")  # the new checkpoint has its name


def meet(store: Path, rank: int) -> Cluster:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    return connect(join("cpu"))


def save(root: Path, store: Path, rank: int, victim: int | None, count: int) -> None:
    """One of two processes: save step 1, and step 2 with a kill at the victim's n-th phase."""
    cluster = meet(store, rank)
    with Saver(root, cluster, keep_last=1, keep_every=0) as saver:
        saver.save(pieces(cluster, 1), record(1))
        saver.wait(strict=True)
    cluster.barrier()
    names: list[str] = []
    kill = KillAt(count) if rank == victim else no_phase

    def phase(name: str) -> None:
        names.append(name)
        kill(name)

    with Saver(root, cluster, keep_last=1, keep_every=0, phase=phase) as saver:
        saver.save(pieces(cluster, 2), record(2))
        try:
            saver.wait(strict=True)
        except RankLost:
            if victim is None:
                raise
        else:
            assert names == phases(rank)


def run(root: Path, victim: int | None, count: int) -> list[int]:
    store = root.with_suffix(".store")
    children = [start_child(lambda r=rank: save(root, store, r, victim, count)) for rank in (0, 1)]
    return [end_child(child) for child in children]


def phases(rank: int) -> list[str]:
    """Of a save on two ranks: begin, data, index and part, then rank 0's; two files each."""
    own = ["begin", "data", "index", "part"]
    return own + ["manifest", "rename", "renamed", "purge", *["deleted"] * 5] * (rank == 0)


def check(root: Path, victim: int, count: int, name: str) -> None:
    status = run(root, victim, count)
    assert status[victim] == -signal.SIGKILL
    assert status[1 - victim] == 0
    assert_intact(newest(root), 2 if name in LATE else 1)


def test_a_rank_that_is_killed_costs_at_most_its_own_save(tmp_path: Path) -> None:
    for victim, name in ((0, "data"), (0, "rename"), (0, "purge"), (1, "begin"), (1, "index")):
        check(tmp_path / f"{victim}-{name}", victim, phases(victim).index(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_may_be_killed_at_any_phase(tmp_path: Path, victim: int) -> None:
    for count, name in enumerate(phases(victim)):
        check(tmp_path / str(count), victim, count, name)


def test_the_next_start_clears_what_killed_saves_left(tmp_path: Path) -> None:
    root = tmp_path / "run"
    check(root, 0, phases(0).index("manifest"), "manifest")
    assert len(list(root.glob(".tmp-*"))) == 1
    root.with_suffix(".store").unlink()
    assert run(root, None, 0) == [0, 0]
    assert [path.name for path in root.iterdir()] == ["step-00000002"]
    assert_intact(newest(root), 2)


def fail(root: Path, store: Path, rank: int) -> None:
    """Rank 1 meets an error in training while a save is under way."""
    cluster = meet(store, rank)
    slow = Saver(root, cluster, keep_last=1, keep_every=0, phase=lambda name: time.sleep(0.05))
    with slow as saver:
        saver.save(pieces(cluster, 1), record(1))
        if rank == 1:
            raise ValueError("training failed")
        assert saver.wait(strict=True) == 1


def test_a_rank_that_fails_finishes_its_part_of_a_save(tmp_path: Path) -> None:
    """F8."""
    store = tmp_path / "store"
    children = [start_child(lambda r=rank: fail(tmp_path / "run", store, r)) for rank in (0, 1)]
    assert [end_child(child) for child in children] == [0, 1]
    assert_intact(newest(tmp_path / "run"), 1)
