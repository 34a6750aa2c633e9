"""Checkpoints of several ranks: written in the background, whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regscale.checkpoint import Lease, LeaseLost, Piece, Reader, Record, newest
from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.training.saver import Saver
from regscale.training.stop import StopFlag
from tests.processes import Pool

ALONE = Cluster(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def record(step: int) -> Record:
    return Record(step=step, samples=8 * step, config={"model": {"kind": "sit"}})


def tensors(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    made = {f"model/{i}": torch.randn(5 + i, 7, generator=g) for i in range(4)}
    return made | {"optimizer/count": torch.arange(11) + step, "model/empty": torch.zeros(0, 3)}


def pieces(cluster: Cluster, step: int) -> list[Piece]:
    """Every tensor cut as evenly as it comes."""
    cut = []
    for name, tensor in tensors(step).items():
        share = -(-tensor.numel() // cluster.world_size)
        start, stop = (min(i * share, tensor.numel()) for i in (cluster.rank, cluster.rank + 1))
        values = tensor.reshape(-1)[start:stop].clone()
        cut.append(Piece(name, tuple(tensor.shape), start, stop, values))
    return cut


def assert_intact(reader: Reader | None, step: int) -> None:
    assert reader is not None
    assert reader.step == step
    for name, tensor in tensors(step).items():
        assert torch.equal(reader.tensor(name), tensor), name


def _saves_in_the_background(cluster: Cluster, folder: str) -> None:
    """With as many files as ranks, and with fewer; training writes into its tensors at once."""
    for max_writers in (64, 2, 1):
        root = Path(folder) / str(max_writers)
        with Saver(root, cluster, keep_last=2, keep_every=0, max_writers=max_writers) as saver:
            assert saver.wait() is None
            for step in (1, 2, 3):
                given = pieces(cluster, step)
                saver.save(given, record(step))
                for piece in given:
                    piece.values.zero_()
                assert saver.stall_seconds > 0
            assert saver.wait(strict=True) == 3
        files = sorted(path.name for path in (root / "step-00000003").glob("*.safetensors"))
        num_files = min(max_writers, cluster.world_size)
        assert files == [f"part-{i:05d}.safetensors" for i in range(num_files)]
        assert_intact(newest(root, cluster), 3)
        assert sorted(path.name for path in root.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "size", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_ranks_save_in_the_background(pool: Pool, tmp_path: Path, size: int) -> None:
    pool.run(size, _saves_in_the_background, str(tmp_path))


def test_one_process_saves_in_the_background(tmp_path: Path) -> None:
    _saves_in_the_background(ALONE, str(tmp_path))


class Fails:
    """A `phase` that fails at one name, as a broken disk would."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, name: str) -> None:
        if name == self.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class Lines(logging.Handler):
    """What is logged at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("regscale").addHandler(self)
        return self.lines

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("regscale").removeHandler(self)


def _outlives(
    cluster: Cluster, root: Path, saver: Saver, message: str, undo: Callable[[], None]
) -> None:
    """The save of step 2 fails on all ranks with one warning each; that of step 3 succeeds."""
    with Lines() as lines:
        saver.save(pieces(cluster, 2), record(2))
        assert saver.wait() == 1
    assert len(lines) == 1
    assert lines[0].startswith("training goes on without this checkpoint: ")
    assert message in lines[0]
    with pytest.raises(RegscaleError, match="could not be saved"):
        saver.wait(strict=True)
    cluster.barrier()
    assert [path.name for path in root.iterdir()] == ["step-00000001"]
    cluster.barrier()
    undo()
    saver.save(pieces(cluster, 3), record(3))
    assert saver.wait(strict=True) == 3
    assert saver.error is None
    assert_intact(newest(root, cluster), 3)


def _outlives_a_broken_disk(cluster: Cluster, folder: str) -> None:
    """F6: EIO at each phase of each rank, with a file for each rank and with one for both."""
    cases = [(rank, name, 64) for rank in (0, 1) for name in ("data", "index")]
    cases += [(0, name, 64) for name in ("manifest", "rename")]
    cases += [(0, "data", 1), (0, "index", 1)]
    for rank, name, max_writers in cases:
        root = Path(folder) / f"{rank}-{name}-{max_writers}"
        phase = Fails("")
        saver = Saver(
            root, cluster, keep_last=1, keep_every=0, max_writers=max_writers, phase=phase
        )
        saver.save(pieces(cluster, 1), record(1))
        saver.wait(strict=True)
        phase.name = name if cluster.rank == rank else ""

        def undo(phase: Fails = phase) -> None:
            phase.name = ""

        _outlives(cluster, root, saver, "EIO", undo)
        saver.close()


def _outlives_a_full_disk(cluster: Cluster, folder: str, rank: int, max_writers: int) -> None:
    """F6: a limit on the size of files fails the writes of one rank."""
    root, limits = Path(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    with Saver(root, cluster, keep_last=1, keep_every=0, max_writers=max_writers) as saver:
        saver.save(pieces(cluster, 1), record(1))
        saver.wait(strict=True)
        if cluster.rank == rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            _outlives(
                cluster,
                root,
                saver,
                "EFBIG",
                lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _says_where_it_cannot_write(cluster: Cluster, folder: str) -> None:
    """F7: a file stands for a read-only folder, which does not stop root."""
    blocked = Path(folder) / "file"
    if cluster.first:
        blocked.write_text("")
    cluster.barrier()
    with Lines() as lines, Saver(blocked / "c", cluster, keep_last=1, keep_every=0) as saver:
        saver.save(pieces(cluster, 1), record(1))
        assert saver.wait() is None
    assert len(lines) == 1
    assert "ENOTDIR" in lines[0]


@pytest.mark.distributed
def test_training_goes_on_where_one_rank_cannot_save(pool: Pool, tmp_path: Path) -> None:
    pool.run(2, _outlives_a_broken_disk, str(tmp_path / "broken"))
    for rank, max_writers in ((0, 64), (1, 64), (0, 1)):
        root = tmp_path / f"full-{rank}-{max_writers}"
        pool.run(2, _outlives_a_full_disk, str(root), rank, max_writers)
    pool.run(2, _says_where_it_cannot_write, str(tmp_path))


class Slow:
    """A `phase` that takes its time, and sends its process a signal or two."""

    def __init__(self, seconds: float, *signals: signal.Signals) -> None:
        self.seconds, self.signals = seconds, signals

    def __call__(self, name: str) -> None:
        if name == "data":
            for number in self.signals:
                os.kill(os.getpid(), number)
                time.sleep(self.seconds)
            time.sleep(self.seconds)


def _saves_one_after_the_other(cluster: Cluster, folder: str) -> None:
    """F8: a save returns while its data are under way; the next one waits for them, and closing
    does, too."""
    may_write, written = threading.Event(), list[str]()

    def phase(name: str) -> None:
        if name == "data":
            may_write.wait()
            written.append(name)

    with Saver(Path(folder), cluster, keep_last=3, keep_every=0, phase=phase) as saver:
        saver.save(pieces(cluster, 1), record(1))
        assert not written
        threading.Timer(0.2, may_write.set).start()
        saver.save(pieces(cluster, 2), record(2))
        assert written
        assert saver.stall_seconds > 0
        saver.save(pieces(cluster, 3), record(3))
    assert saver.wait(strict=True) == 3
    for step in (1, 2, 3):
        assert_intact(Reader(Path(folder) / f"step-{step:08d}"), step)


def _outlives_signals(cluster: Cluster, folder: str) -> None:
    """F30: the second SIGTERM finds the last save under way."""
    phase = Slow(0.1, signal.SIGTERM, signal.SIGTERM)
    with (
        StopFlag() as stop,
        Saver(Path(folder), cluster, keep_last=1, keep_every=0, phase=phase) as saver,
    ):
        saver.save(pieces(cluster, 1), record(1))
        assert saver.wait(strict=True) == 1
        assert stop.reason == "SIGTERM"
    assert_intact(newest(Path(folder), cluster), 1)


def _tells_the_others_of_a_fault(cluster: Cluster, folder: str) -> None:
    """An error that no user can put right ends its own rank, not the others' wait."""
    given = pieces(cluster, 1)
    if cluster.rank == 1:
        given.append(given[0])
    saver = Saver(Path(folder), cluster, keep_last=1, keep_every=0)
    saver.save(given, record(1))
    if cluster.rank == 1:
        with pytest.raises(AssertionError, match="given twice"):
            saver.wait()
    else:
        assert saver.wait() is None
        assert "rank 1 met a fault while it saved; found AssertionError" in str(saver.error)


@pytest.mark.distributed
def test_a_save_under_way_is_finished(pool: Pool, tmp_path: Path) -> None:
    pool.run(2, _saves_one_after_the_other, str(tmp_path / "f8"))
    pool.run(2, _outlives_signals, str(tmp_path / "f30"))
    pool.run(2, _tells_the_others_of_a_fault, str(tmp_path / "fault"))
    pool.run(2, _gives_up_without_the_lease, str(tmp_path), "rename")


def _gives_up_without_the_lease(cluster: Cluster, folder: str, name: str) -> None:
    """F10: another process takes over when the save of step 2 reaches this phase."""
    run = Path(folder) / name
    root = run / "checkpoints"
    lease = Lease.acquire(run, job="7") if cluster.first else None

    def phase(reached: str) -> None:
        if cluster.first and reached == name and any(root.glob("*step-00000002*")):
            Lease.acquire(run, job="7", restarts=1)

    check = lease.check if lease else pytest.fail  # only rank 0 holds it
    saver = Saver(root, cluster, keep_last=1, keep_every=0, check_lease=check, phase=phase)
    with Lines() as lines, saver:
        saver.save(pieces(cluster, 1), record(1))
        saver.save(pieces(cluster, 2), record(2))
        with pytest.raises(LeaseLost, match=r"has taken over this run; found job 7 \(restart 1\)"):
            for _ in range(2):
                saver.save(pieces(cluster, 3), record(3))
    kept = [1, 2] if name == "renamed" else [1]
    assert f"step {3 if 2 in kept else 2}: the save is given up: " in lines[-1]
    cluster.barrier()
    names = sorted(path.name for path in root.iterdir())
    assert names == [f"step-{step:08d}" for step in kept]


@pytest.mark.parametrize("name", ["part", "rename", "renamed"])
def test_without_the_lease_nothing_gets_its_name_and_nothing_is_deleted(
    tmp_path: Path, name: str
) -> None:
    _gives_up_without_the_lease(ALONE, str(tmp_path), name)


def test_an_interrupt_leaves_a_temporary_folder_and_the_older_checkpoint(tmp_path: Path) -> None:
    go_on = threading.Event()
    go_on.set()
    with (
        pytest.raises(KeyboardInterrupt),
        Saver(
            tmp_path, ALONE, keep_last=1, keep_every=0, phase=lambda name: go_on.wait() and None
        ) as saver,
    ):
        saver.save(pieces(ALONE, 1), record(1))
        saver.wait(strict=True)
        go_on.clear()
        saver.save(pieces(ALONE, 2), record(2))
        raise KeyboardInterrupt
    assert_intact(newest(tmp_path), 1)
    go_on.set()
    assert saver.wait() == 2


EXIT = """
import sys, time
from pathlib import Path
from regscale.training.saver import Saver
from tests.training.test_saver import ALONE, pieces, record
saver = Saver(
    Path(sys.argv[1]), ALONE, keep_last=1, keep_every=0, phase=lambda name: time.sleep(0.2)
)
saver.save(pieces(ALONE, 1), record(1))
raise ValueError("training failed")
"""


def test_a_process_that_fails_finishes_its_save(tmp_path: Path) -> None:
    """F8."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: training failed\n")
    assert_intact(newest(tmp_path), 1)
