"""A wandb that raises, is down or hangs costs its figures and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from regscale import assemble
from regscale.training import train
from regscale.training import wandb as reporting
from regscale.training.wandb import Wandb
from tests.conftest import MakeConfig


class Run:
    """A wandb run whose methods a test replaces."""

    def __init__(self, **methods: Callable[..., None]) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.finished = False
        self.__dict__ |= methods

    def log(self, figures: dict[str, float], *, step: int) -> None:
        self.sent.append((step, figures))

    def finish(self) -> None:
        self.finished = True


def fails(*args: Any, **kwargs: Any) -> None:
    raise OSError("the network is down")


def hangs(*args: Any, **kwargs: Any) -> None:
    threading.Event().wait()


@pytest.fixture
def open_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., Any]], Wandb]:
    def make(init: Callable[..., Any]) -> Wandb:
        monkeypatch.setattr(wandb, "init", init)
        return Wandb(tmp_path, "run", "project", {})

    return make


OpenWandb = Callable[[Callable[..., Any]], Wandb]


def test_figures_arrive_in_order_and_the_run_is_closed_behind_them(open_wandb: OpenWandb) -> None:
    run = Run()
    opened = open_wandb(lambda **_: run)
    for step in range(50):
        opened.log(step, {"loss": float(step)})
    opened.finish()
    assert run.sent == [(step, {"loss": float(step)}) for step in range(50)]
    assert run.finished


@pytest.mark.parametrize("init", [fails, lambda **_: Run(log=fails), lambda **_: Run(finish=fails)])
def test_a_wandb_that_raises_never_stops_training(
    tiny: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    init: Callable[..., Any],
) -> None:
    monkeypatch.setattr(wandb, "init", init)
    job = assemble.job(tiny("training.wandb=test"))
    assert train(job).reason == "finished"
    assert caplog.text.count("wandb failed and is left alone") == 1
    assert len((job.folder / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("run", [Run(log=hangs), Run(finish=hangs)])
def test_a_wandb_that_hangs_holds_nobody_for_long(
    open_wandb: OpenWandb,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    run: Run,
) -> None:
    opened = open_wandb(lambda **_: run)
    since = time.monotonic()
    opened.log(1, {"loss": 1.0})
    opened.finish(seconds=0.3)
    opened.log(2, {"loss": 1.0})
    assert time.monotonic() - since < 5
    assert caplog.text.count("left alone from here on: it did not finish within 0 s") == 1


STOPPED = """
import logging, os, signal, sys
from pathlib import Path
from regscale.training.wandb import Wandb
logging.basicConfig()
opened = Wandb(Path(sys.argv[1]), "run", "project", {})
opened.log(1, {"loss": 1.0})
for children in Path("/proc/self/task").glob("*/children"):
    for child in children.read_text().split():
        if Path(f"/proc/{child}/comm").read_text().startswith("wandb"):
            os.kill(int(child), signal.SIGSTOP)
            print("stopped", child)
opened.finish(seconds=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_service_that_stands_still_does_not_hold_the_exit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "WANDB_MODE": "offline"},
        timeout=100,
        check=True,
    )
    word, pid = done.stdout.split()
    assert word == "stopped"
    assert not Path(f"/proc/{pid}").exists()
    assert done.stderr.count("it did not finish within 1 s") == 1


def test_figures_that_wandb_does_not_take_do_not_fill_the_memory(
    open_wandb: OpenWandb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting, "MAX_WAITING", 3)
    opened = open_wandb(lambda **_: Run(log=hangs))
    for step in range(50):
        opened.log(step, {"loss": 1.0})
    assert caplog.text.count("left alone from here on: it does not take figures") == 1


def test_wandbs_own_limit_at_the_exit_is_below_ours() -> None:
    settings = reporting._settings(wandb)
    assert getattr(settings, "finish_timeout", 1.0) < reporting.FINISH_SECONDS
    assert settings.init_timeout == reporting.INIT_SECONDS
