"""Whole runs on several ranks: plain processes of the train command with RANK and WORLD_SIZE, as
srun starts them. They are forked from one process that has torch and regscale imported already."""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE_SECONDS = 240.0
COMMON = (
    *("engine.kind=ddp", "training.batch_size=12", "training.num_workers=0"),
    *("training.checkpoint_every=7", "training.compare_every=5", "training.hang_seconds=60"),
    *("model.qk_norm=true", "optimizer.learning_rate=1e-4"),  # every weight has a true gradient
    *("optimizer.warmup_steps=4", "optimizer.schedule=cosine", "optimizer.decay_steps=30"),
    "align.vit.stop_step=9",
)
ENGINES = {
    "ddp": ("engine.kind=ddp",),
    "fsdp2": ("engine.kind=fsdp2",),
    "zero1": ("engine.kind=zero", "engine.stage=1"),
    "zero2": ("engine.kind=zero", "engine.stage=2"),
    "zero3": ("engine.kind=zero", "engine.stage=3"),
}
LONG, LOADER = "training.num_steps=100000", "training.num_workers=1"
Start = Callable[..., "Ranks"]
Before = Callable[[int], None]  # the fault that a rank brings along, called before the command
PRELOADED = (
    *("regscale.train", "regscale.data.digits", "regscale.autoencoders.identity"),
    *("regscale.conditioning.class_label", "regscale.representations.digits_vit"),
    *("regscale.models.sit", "regscale.objective", "regscale.sampling.solvers.euler"),
    *("regscale.parallel.single", "regscale.parallel.ddp", "regscale.parallel.fsdp2"),
    *("torch.utils.data", "torch._dynamo", "sklearn.datasets", "tests.training.test_loop"),
)


def steps(count: int) -> str:
    return f"training.num_steps={count}"


class Nursery:
    """A process that forks ranks and knows how they ended."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,))
        self._process.start()
        there.close()

    def fork(self, *task: Any) -> int:
        """The id of a process that does `_be_a_rank(*task)`."""
        return self._asked("fork", task)

    def status(self, pid: int) -> int | None:
        """As `subprocess` has it: negative for a signal; None as long as the process lives."""
        return self._asked("status", pid)

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _asked(self, *question: Any) -> Any:
        self._line.send(question)
        assert self._line.poll(PATIENCE_SECONDS), "the nursery does not answer"
        return self._line.recv()


def _serve(line: Any) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for name in PRELOADED:
        importlib.import_module(name)
    from regscale import train
    from regscale.config import load

    train.load = cached = _cached(load)  # read once for all ranks
    statuses: dict[int, int | None] = {}
    while True:
        try:
            what, value = line.recv()
        except EOFError:  # the tests are gone
            for pid in running([pid for pid, status in statuses.items() if status is None]):
                os.kill(pid, signal.SIGKILL)
            return
        if what == "fork":
            with suppress(Exception):  # each rank meets it itself
                cached(train.RunConfig, Path(value[1][0]), value[1][1:])
            if "engine.kind=zero" in value[1]:  # DeepSpeed's start, and with it torch's compiler
                importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
            pid = os.fork()
            if not pid:
                line.close()
                _be_a_rank(*value)
            statuses[pid] = None
            line.send(pid)
            continue
        if statuses[value] is None:
            ended, status = os.waitpid(value, os.WNOHANG)
            statuses[value] = os.waitstatus_to_exitcode(status) if ended else None
        line.send(statuses[value])


def _cached(load: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def cached(kind: type, file: Path, overrides: list[str]) -> Any:
        key = f"{file} {overrides}"
        if key not in made:
            made[key] = load(kind, file, overrides)
        return made[key]

    return cached


def _be_a_rank(
    environment: dict[str, str], arguments: list[str], said: str, before: Before | None
) -> None:
    """In a session of its own, as each task of a step is; never returns."""
    status: Any = 1
    try:
        os.setsid()
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.environ |= environment
        sys.argv = ["regscale.train", *arguments]
        import torch

        from regscale import train
        from regscale.log import run_command

        torch.set_num_threads(1)
        if before is not None:
            before(int(environment["RANK"]))
        run_command(train.main)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
        logging.shutdown()
        os._exit(status if isinstance(status, int) else 1)


class Ranks:
    """One start of a run. `own` are overrides that one rank alone is given."""

    def __init__(
        self,
        nursery: Nursery,
        file: Path,
        run: Path,  # the run's folder
        *overrides: str,
        size: int = 2,
        own: dict[int, tuple[str, ...]] | None = None,
        before: Before | None = None,
        port: int | None = None,
    ) -> None:
        self.run, self._nursery, self._size = run, nursery, size
        run.parent.mkdir(parents=True, exist_ok=True)
        number = len(list(run.parent.glob(f"{run.name}-*-0.stderr")))
        self._said = [run.parent / f"{run.name}-{number}-{rank}.stderr" for rank in range(size)]
        arguments = [str(file), f"runs={run.parent}", f"name={run.name}", *overrides]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
        self.pids = [
            nursery.fork(
                {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
                [*arguments, *(own or {}).get(rank, ())],
                str(self._said[rank]),
                before,
            )
            for rank in range(size)
        ]

    def said(self, rank: int) -> str:
        return self._said[rank].read_text() if self._said[rank].exists() else ""

    def trains(self, step: int) -> Ranks:
        """Wait until that update is reported."""
        self.until(lambda: last_step(self.run) >= step, f"step {step} is reported")
        return self

    def until(self, fact: Callable[[], Any], meaning: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not fact():
            ended = [self._nursery.status(pid) for pid in self.pids]
            if ended != [None] * self._size or time.monotonic() > deadline:
                told = "\n".join(self.said(rank)[-3000:] for rank in range(self._size))
                raise AssertionError(f"{meaning}: not in time; statuses {ended}\n{told}")
            time.sleep(0.02)

    def settled(self) -> int:
        """The last reported step, once nothing moves: in twenty looks, two seconds, every rank and
        every worker sleeps. One that only waits for its turn on the machine does not."""
        looks, step = 0, -1

        def still() -> bool:
            nonlocal looks, step
            sleeping = set(states(self.pids).values()) <= {"S", "T"}
            before, step = step, last_step(self.run)
            looks = looks + 1 if sleeping and step == before else 0
            time.sleep(0.1)
            return looks == 20

        self.until(still, "all ranks wait")
        return step

    def send(self, number: signal.Signals, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.pids[rank], number)

    def workers(self, rank: int) -> list[int]:
        """The loader's processes of a rank."""
        lists = Path(f"/proc/{self.pids[rank]}/task").glob("*/children")
        return [int(pid) for held in lists for pid in held.read_text().split()]

    def statuses(self, *ranks: int, seconds: float = PATIENCE_SECONDS) -> list[int | None]:
        """Of these ranks, or all, once they have ended; None for one that has not in this time."""
        deadline = time.monotonic() + seconds
        pids = [self.pids[rank] for rank in ranks or range(self._size)]
        while True:
            ended = [self._nursery.status(pid) for pid in pids]
            if None not in ended or time.monotonic() > deadline:
                return ended
            time.sleep(0.02)

    def finished(self) -> Ranks:
        assert self.statuses() == [0] * self._size, self.said(0)[-3000:]
        return self

    def left(self) -> list[int]:
        """What still runs of this start. A worker whose rank was killed looks for it every 5 s."""
        deadline = time.monotonic() + 60
        while (alive := running(self.pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """F23: nothing is left, whatever the test did."""
        over = None not in self.statuses(seconds=0)  # else the test itself has failed
        left = self.left() if over else []
        for pid in running(self.pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.statuses()
        assert left == []


def running(sessions: list[int]) -> list[int]:
    """The processes of these sessions that have not ended."""
    return list(states(sessions))


def states(sessions: list[int]) -> dict[int, str]:
    """What the main thread of each of them does: R runs or would, S sleeps, T is stopped."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) in sessions and state != "Z":
                found[int(path.parent.name)] = state
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def last_step(run: Path) -> int:
    """Of the last whole line of metrics."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def marker(run: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((run / "marker.json").read_text())
    return made


def fed(run: Path) -> dict[int, list[str]]:
    """Key and noise of every sample that was trained on, by its place in the run."""
    lines = [x for path in run.glob("fed-*") for x in path.read_text().splitlines()]
    samples = {}
    for position, *sample in map(json.loads, lines):
        assert position not in samples, "a sample is met twice"
        samples[position] = sample
    return samples


# Faults, and what watches: functions that ranks call before the command.


def watched(rank: int) -> None:
    """Writes down what each update is fed."""
    from regscale.training import loop

    update = loop.update

    def watching(job: Any, batch: Any) -> Any:
        noise = batch.noise
        with (job.folder / f"fed-{rank}").open("a") as file:
            for i, (position, key) in enumerate(zip(batch.positions, batch.keys, strict=True)):
                drawn = [noise.times, noise.keep, noise.posterior, noise.latents, *noise.tokens]
                digest = hashlib.sha256(b"".join(x[i].numpy().tobytes() for x in drawn))
                file.write(json.dumps([int(position), key, digest.hexdigest()]) + "\n")
        return update(job, batch)

    loop.update = watching


def slow_saves(rank: int) -> None:
    """Each file takes its time, as on a busy file system."""
    from functools import partial

    from regscale.training import loop

    def phase(name: str) -> None:
        if name == "data":
            time.sleep(1.0)

    loop.Saver = partial(loop.Saver, phase=phase)  # type: ignore[misc]


def killed_in_a_save(rank: int) -> None:
    """Rank 1, when it has written its part of the third save and not yet said so."""
    from functools import partial

    from regscale.training import loop

    count = 0

    def phase(name: str) -> None:
        nonlocal count
        count += name == "index"
        if rank == 1 and count == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.Saver = partial(loop.Saver, phase=phase)  # type: ignore[misc]


def slow_pictures(rank: int) -> None:
    """Rank 1 says that it draws, and draws when it is told to."""
    from regscale import assemble

    make = assemble.preview

    def slow(config: Any, *arguments: Any) -> Any:
        preview = make(config, *arguments)

        def drawing(step: int) -> None:
            if rank == 1:
                run = Path(config.runs) / config.name
                (run / f"drawing-{step}").touch()
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not (run / "draw").exists() and time.monotonic() < deadline:
                    time.sleep(0.02)
            preview(step)

        return drawing

    assemble.preview = slow


def told_of_compiling(rank: int) -> None:
    """Says that it compiles its first block."""
    from torch._inductor import compile_fx

    from regscale import assemble

    make, compiled = assemble.job, compile_fx.compile_fx

    def job(config: Any) -> Any:
        def telling(*arguments: Any, **options: Any) -> Any:
            (Path(config.runs) / config.name / f"compiling-{rank}").touch()
            return compiled(*arguments, **options)

        compile_fx.compile_fx = telling
        return make(config)

    assemble.job = job


def not_finite(rank: int) -> None:
    """The loss of rank 1 is not a number from its fourth backward on."""
    if rank != 1:
        return
    from regscale import assemble

    make = assemble.job

    def poisoned(config: Any) -> Any:
        job = make(config)
        backward, count = job.engine.backward, 0

        def bad(loss: Any) -> None:
            nonlocal count
            count += 1
            backward(loss * (float("nan") if count > 3 else 1.0))

        job.engine.backward = bad
        return job

    assemble.job = poisoned


def broken_set_up(rank: int) -> None:
    """Rank 1 meets a fault before it builds its model."""
    if rank != 1:
        return
    from regscale import assemble

    def boom(config: Any) -> None:
        raise ValueError("boom")

    assemble.pieces = boom


def broken_first(rank: int) -> None:
    """Rank 0 meets a fault in what all wait to hear from it."""
    from regscale.training import loop

    def boom(folder: Path) -> None:
        raise ValueError("boom")

    loop.open_folder = boom
