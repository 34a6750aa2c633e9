"""A rank that hangs or fails takes all down in time, says why, and leaves no process behind."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from regscale.cluster import connect, join
from regscale.errors import RegscaleError
from regscale.training import watchdog
from regscale.training.watchdog import STATUS, Watchdog

LIMIT_SECONDS = 3.0
PATIENCE_SECONDS = 60.0
Rank = Callable[[Watchdog, Path], None]


class Ranks:
    """Processes of one run, and the files that hold what they say."""

    def __init__(self, folder: Path, size: int, rank: Rank) -> None:
        context = multiprocessing.get_context("forkserver")  # torch is imported once
        context.set_forkserver_preload(["tests.training.test_watchdog"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = folder
        self.processes: list[Any] = [
            context.Process(target=_rank, args=(number, size, port, folder, rank))
            for number in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait_for(self, *names: str) -> None:
        """Until the ranks have made these files."""
        self.until(lambda: all((self.folder / name).exists() for name in names))

    def until(self, fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not fact():
            assert time.monotonic() < deadline, self.said(0)
            time.sleep(0.02)

    def statuses(self) -> list[int | None]:
        for process in self.processes:
            process.join(PATIENCE_SECONDS)
        return [process.exitcode for process in self.processes]

    def said(self, rank: int) -> str:
        return (self.folder / f"stderr-{rank}").read_text()

    def stacks(self, rank: int) -> str:
        return (self.folder / "logs" / f"stacks-rank-{rank:05d}.txt").read_text()

    def words(self) -> list[dict[str, Any]]:
        """Left for the batch script of the job."""
        return [json.loads(path.read_text()) for path in self.folder.glob("failures-2/*.json")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int, Rank], Ranks]]:
    """Starts ranks; at the end none of them runs."""
    made: list[Ranks] = []

    def make(size: int, rank: Rank) -> Ranks:
        made.append(Ranks(tmp_path, size, rank))
        return made[-1]

    yield make
    for process in [process for ranks in made for process in ranks.processes]:
        process.kill()
        process.join()
    for worker in tmp_path.glob("worker-*"):
        with suppress(ProcessLookupError):
            os.kill(int(worker.read_text()), signal.SIGKILL)


def _rank(rank: int, size: int, port: int, folder: Path, body: Rank) -> None:
    said = os.open(folder / f"stderr-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"REGSCALE_JOB": str(folder), "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "n7"}
    torch.set_num_threads(1)
    with Watchdog(seconds=60, folder=folder, rank=rank) as dog:
        connect(join("cpu"))
        body(dog, folder)


def _ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has asked for yet. A process that was killed is a while about
    its end: it gives back its memory first."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with suppress(FileNotFoundError, ProcessLookupError):
        while time.monotonic() < deadline:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            time.sleep(0.02)
        return False
    return True


def _sums(dog: Watchdog, folder: Path) -> None:
    """Updates that wait for all ranks; each rank has a process that loads. A rank has little time
    once it is told so: before, a machine that stands still for a while would end any of them."""
    loads = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    loads.start()
    (folder / f"worker-{dist.get_rank()}").write_text(str(loads.pid))
    threading.Thread(target=_tighten_when_told, args=(dog, folder), daemon=True).start()
    step = 0
    while True:
        step += 1
        dog.beat(f"step {step}")
        dist.all_reduce(torch.ones(1))
        time.sleep(0.05)
        if step == 3:
            (folder / f"going-{dist.get_rank()}").touch()


def _tighten_when_told(dog: Watchdog, folder: Path) -> None:
    while not (folder / f"tight-{dist.get_rank()}").exists():
        time.sleep(0.02)
    dog.tighten(LIMIT_SECONDS)


@pytest.mark.distributed
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_stands_still_is_noticed_in_time_and_where_the_other_waits(
    start: Callable[[int, Rank], Ranks], stopped: int
) -> None:
    """Also rank 0, which keeps the store that ranks meet at."""
    ranks, other = start(2, _sums), 1 - stopped
    ranks.wait_for("going-0", "going-1")
    os.kill(ranks.processes[stopped].pid, signal.SIGSTOP)
    time.sleep(0.5)  # the other has come to where it waits
    since = time.monotonic()
    (ranks.folder / f"tight-{other}").touch()
    ranks.until(lambda: "has not moved" in ranks.said(other))
    assert LIMIT_SECONDS <= time.monotonic() - since < LIMIT_SECONDS + 8
    ranks.processes[other].join(PATIENCE_SECONDS)  # it writes its stacks
    assert ranks.processes[other].exitcode == STATUS
    message = f"error: rank {other}: has not moved for 3 s and is ended; found it was at step "
    assert message in ranks.said(other)
    for text in (ranks.said(other), ranks.stacks(other)):
        assert "in all_reduce" in text
        assert "in _sums" in text
    (word,) = ranks.words()
    assert f"error: {word.pop('message')}" in ranks.said(other)
    assert word == {"kind": "fault", "rank": other, "host": "n7", "nodes": []}
    ranks.processes[stopped].kill()  # as a launcher does
    ranks.processes[stopped].join()
    assert _ended(int((ranks.folder / f"worker-{other}").read_text()))


def _stuck(dog: Watchdog, folder: Path) -> None:
    """C code that neither returns nor lets other threads of Python run."""
    watchdog.GRACE_SECONDS = 1.0
    dog.tighten(1.0)
    ctypes.PyDLL(None).pause()


def test_a_stuck_interpreter_is_ended_as_well(start: Callable[[int, Rank], Ranks]) -> None:
    ranks = start(1, _stuck)
    assert ranks.statuses() == [1]
    assert "Timeout (" in ranks.said(0)
    assert "in _stuck" in ranks.said(0)


def _one_fails_in_set_up(dog: Watchdog, folder: Path) -> None:
    if dist.get_rank() == 1:
        raise ValueError("boom")
    dist.barrier()


def _one_fails_while_others_compute(dog: Watchdog, folder: Path) -> None:
    if dist.get_rank() == 1:
        with dog.telling():
            raise ValueError("boom")
    time.sleep(600)


def _rank_0_fails(dog: Watchdog, folder: Path) -> None:
    if dist.get_rank() == 0:
        raise ValueError("boom")
    dist.barrier()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("size", "body", "failing"),
    [
        (3, _one_fails_in_set_up, 1),
        (2, _one_fails_while_others_compute, 1),
        (2, _rank_0_fails, 0),
    ],
)
def test_one_rank_fails_and_all_end_with_its_traceback(
    start: Callable[[int, Rank], Ranks], size: int, body: Rank, failing: int
) -> None:
    ranks = start(size, body)
    assert ranks.statuses() == [1] * size
    for rank in range(size):
        assert "ValueError: boom" in ranks.said(rank)
        assert f"in {body.__name__}" in ranks.said(rank)
        assert (f"rank {failing} failed: " in ranks.said(rank)) == (rank != failing)
    if body is _one_fails_while_others_compute:  # the others leave word by themselves
        (word,) = ranks.words()  # the command of a job leaves that of the first
        assert word["message"] == f"rank {failing} failed: ValueError: boom"


def _all_meet_one_error(dog: Watchdog, folder: Path) -> None:
    try:
        with dog.telling():
            time.sleep(0.2 * dist.get_rank())
            raise RegscaleError("run", "is wrong", found="a fault", fix="Mend it.")
    except RegscaleError:
        time.sleep(watchdog.TURN_SECONDS + 1)  # cleaning up: a save that is waited for
        raise SystemExit(2) from None


@pytest.mark.distributed
def test_ranks_that_meet_the_same_error_end_by_themselves(
    start: Callable[[int, Rank], Ranks],
) -> None:
    ranks = start(2, _all_meet_one_error)
    assert ranks.statuses() == [2, 2]
    assert "failed: " not in ranks.said(0) + ranks.said(1)


def _something_long(dog: Watchdog, folder: Path) -> None:
    dog.tighten(4.0)
    with dog.during("pictures", seconds=60):
        time.sleep(5.5)
    for step in range(10):
        dog.beat(f"step {step}")
        time.sleep(0.3)


def test_what_is_known_to_take_long_may(start: Callable[[int, Rank], Ranks]) -> None:
    ranks = start(1, _something_long)
    assert ranks.statuses() == [0]
    assert ranks.said(0) == ""
    assert not (ranks.folder / "logs").exists()


def test_after_its_block_a_watchdog_is_quiet(tmp_path: Path, monkeypatch: Any) -> None:
    armed: list[str] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: armed.append("on"))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: armed.append("off"))
    deadline = time.monotonic() + PATIENCE_SECONDS
    with Watchdog(seconds=60, folder=tmp_path, rank=0) as dog:
        while armed != ["on", "on"] and time.monotonic() < deadline:
            time.sleep(0.02)
        dog.beat("step 1")
    assert armed[:2] == ["on", "on"]
    assert armed.index("off") == len(armed) - 1
    time.sleep(1.2)
    assert armed.index("off") == len(armed) - 1


def test_the_flight_recorder_of_nccl_is_written_where_cuda_is_used(
    tmp_path: Path, monkeypatch: Any
) -> None:
    module, path = torch._C._distributed_c10d, tmp_path / "trace"
    monkeypatch.setattr(module, "_dump_nccl_trace", lambda: b"trace", raising=False)
    for used in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        watchdog._record_nccl(path)
        assert path.exists() == used
    assert path.read_bytes() == b"trace"
    watchdog._record_nccl(tmp_path / "absent" / "trace")  # a disk that fails ends nothing


LAUNCHED = """
import sys
from pathlib import Path
from regscale.cluster import connect, join
from regscale.training.watchdog import Watchdog
import torch.distributed as dist
cluster = join("cpu")
with Watchdog(seconds=60, folder=Path(sys.argv[1]), rank=cluster.rank) as dog:
    cluster = connect(cluster)
    if cluster.rank == 1:
        raise ValueError("boom")
    cluster.barrier()
"""


@pytest.mark.distributed
def test_the_launcher_takes_the_job_down(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert "rank 1 failed: Traceback" in done.stderr
    assert done.stderr.count("ValueError: boom") >= 2
