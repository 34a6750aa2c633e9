"""Runs under torchrun, which has signals and ends of its own (docs/faults.md)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regscale.checkpoint import candidates
from tests.training import ranks
from tests.training.ranks import COMMON, LOADER, LONG, last_step, marker

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600), pytest.mark.slow]


class Launched:
    """The run under torchrun, which gives its ranks sessions of their own."""

    def __init__(self, file: Path, run: Path, *, restarts: int = 0) -> None:
        self.run, self._file = run, run.with_suffix(".said")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--max-restarts={restarts}", "--nproc-per-node=2"]
        arguments = ["-m", "regscale.train", str(file)]
        options = [f"runs={run.parent}", f"name={run.name}", *COMMON, LONG, LOADER]
        with self._file.open("w") as said:
            self.process = subprocess.Popen(
                [*command, *arguments, *options],
                stderr=said,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self.ranks: list[int] = []
        self.trains(3)

    def trains(self, step: int) -> None:
        """Wait until that update is reported, by ranks that are not those of before."""
        before, deadline = self.ranks, time.monotonic() + 200
        while last_step(self.run) < step or set(before) & set(self._children()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        self.ranks = self._children()

    def _children(self) -> list[int]:
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for held in lists for pid in held.read_text().split()]

    def said(self) -> str:
        return self._file.read_text()[-5000:]

    def left(self) -> list[int]:
        deadline = time.monotonic() + 60
        while (alive := ranks.running(self.ranks)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for pid in ranks.running(self.ranks):
            os.kill(pid, signal.SIGKILL)


def test_ranks_whose_launcher_is_gone_save_and_end(file: Path, tmp_path: Path) -> None:
    """F21, F23: torchrun knows no SIGUSR1, dies of it and leaves its ranks to themselves."""
    with Launched(file, tmp_path / "run") as launched:
        assert len(launched.ranks) == 2
        launched.process.send_signal(signal.SIGUSR1)
        assert launched.process.wait(10) == -signal.SIGUSR1
        before = last_step(launched.run)
        assert launched.left() == []
        made = marker(launched.run)
        assert made["reason"] == "the launcher is gone"
        assert 0 <= made["step"] - before <= 3
        name = f"step-{made['step']:08d}"
        assert candidates(launched.run / "checkpoints")[0].name == name


def test_a_launcher_hands_sigterm_on(file: Path, tmp_path: Path) -> None:
    """F21: torchrun itself ends with 1 and its own traceback; the marker tells."""
    with Launched(file, tmp_path / "run") as launched:
        launched.process.send_signal(signal.SIGTERM)
        assert launched.process.wait(60) == 1
        assert launched.left() == []
        made = marker(launched.run)
        assert made["reason"] == "SIGTERM"
        assert made["step"] == last_step(launched.run)


def test_a_launcher_ends_the_run_where_a_rank_is_killed(file: Path, tmp_path: Path) -> None:
    """F22, F23."""
    with Launched(file, tmp_path / "run") as launched:
        os.kill(launched.ranks[1], signal.SIGKILL)
        assert launched.process.wait(60) == 1
        assert launched.left() == []
        assert not (launched.run / "marker.json").exists()


def test_a_launcher_that_starts_ranks_again_lets_them_meet(file: Path, tmp_path: Path) -> None:
    """F22: torchrun keeps the store of the ranks before, and all that they wrote into it."""
    with Launched(file, tmp_path / "run", restarts=1) as launched:
        os.kill(launched.ranks[0], signal.SIGKILL)
        launched.trains(last_step(launched.run) + 8)
        launched.process.send_signal(signal.SIGTERM)
        launched.process.wait(60)
        assert launched.left() == []
        assert marker(launched.run)["reason"] == "SIGTERM"
