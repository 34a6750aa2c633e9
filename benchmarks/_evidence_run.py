"""The missing runs of the study, each a process of its own that may be killed anywhere."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from benchmarks._evidence_study import Run, Study
from benchmarks._step_timing import machine
from regscale.cluster import join
from regscale.errors import RegscaleError
from regscale.evaluation.suites.shapecaps import COUNTS
from regscale.files import replacing
from regscale.recipe import RunConfig

log = logging.getLogger(__name__)

MACHINES = "machines.json"  # what a run was trained on, one after the other


class Launch(Protocol):
    """How commands are run."""

    def __call__(self, command: Sequence[str], path: Path) -> int:
        """The exit status of a module with arguments; what it says goes to the end of a file."""
        ...

    def stop(self) -> None:
        """End what runs, and start nothing else."""
        ...


class Launcher:
    """Processes of `python -m MODULE ...`, each with a number of threads."""

    def __init__(self, num_threads: int | None) -> None:
        own = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
        self._environment = {**os.environ, **own}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __call__(self, command: Sequence[str], path: Path) -> int:
        if self._stopped:
            return 1
        path.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", *command]
        with path.open("ab") as file:
            process = subprocess.Popen(
                words, env=self._environment, stdout=file, stderr=subprocess.STDOUT
            )
            self._running.add(process)
            try:
                return process.wait()
            finally:
                self._running.discard(process)

    def stop(self) -> None:
        """A run then saves its last step, and an evaluation keeps the pictures it has drawn."""
        self._stopped = True
        for process in list(self._running):
            process.terminate()


def make(
    study: Study, runs: Sequence[Run], launch: Launch, *, parallel: int, num_threads: int | None
) -> list[str]:
    """Train and evaluate what is missing; what failed, each in a line."""

    def one(run: Run) -> str:
        try:
            _train(study, run, launch, num_threads)
            for drawing in run.drawings:
                _evaluate(study, run, drawing, launch)
        except RegscaleError as error:
            log.warning("%s", error)
            return str(error)
        log.info("%s: done", study.folder(run))
        return ""

    with ThreadPoolExecutor(parallel) as pool:
        try:
            return [failure for failure in pool.map(one, runs) if failure]
        except BaseException:
            launch.stop()
            raise


def marker(folder: Path) -> dict[str, object]:
    """How far a run came when it last ended; empty while it goes on or before it began."""
    path = folder / "marker.json"
    found: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    return found


def own_config(folder: Path) -> dict[str, Any]:
    """What a run was trained with, as it wrote it."""
    values: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return values


def _train(study: Study, run: Run, launch: Launch, num_threads: int | None) -> None:
    folder = study.folder(run)
    if marker(folder).get("reason") == "finished":
        return
    config = study.configured(run)
    _write_stats(study, run, config, launch)
    _note_machine(folder, config, num_threads)
    log.info("%s: training", folder)
    command = ["regscale.train", str(study.config), *study.options(run)]
    _launch(launch, command, folder / "evidence" / "train.log")
    if marker(folder).get("reason") != "finished":
        raise RegscaleError(
            folder, "has not come to its end", found=marker(folder), fix="Run it again."
        )


def _evaluate(study: Study, run: Run, drawing: str, launch: Launch) -> None:
    place = study.place(run, drawing)
    if (place / "evaluation.json").exists() and (place / COUNTS).exists():
        return
    log.info("%s: drawing prompts, %s", study.folder(run), drawing)
    kinds = ", ".join(own_config(study.folder(run))["data"]["kinds"])
    command = ["regscale.evaluate", str(study.folder(run)), "--suite", "shapecaps"]
    command += [f"kinds=[{kinds}]", f"num_prompts={study.num_prompts}", *run.drawings[drawing]]
    _launch(launch, [*command, "--out", str(place)], place.with_suffix(".log"))


def _write_stats(study: Study, run: Run, config: RunConfig, launch: Launch) -> None:
    """The file that normalisation `stats` reads, of 10,000 scenes."""
    for entangled in config.entangled.values():
        if entangled.stats is not None and not Path(entangled.stats).exists():
            command = ["regscale.prepare", "token-stats", str(study.config), *study.options(run)]
            command += ["--num-samples", "10000", "--num-workers", "0"]
            _launch(launch, command, study.folder(run) / "evidence" / "stats.log")


def _note_machine(folder: Path, config: RunConfig, num_threads: int | None) -> None:
    """Add this machine to those that the run was trained on."""
    found = machine(join(config.device).device)
    found["threads"] = num_threads or torch.get_num_threads()
    path = folder / "evidence" / MACHINES
    before = json.loads(path.read_text()) if path.exists() else []
    if found not in before:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write((json.dumps([*before, found]) + "\n").encode())


def _launch(launch: Launch, command: Sequence[str], path: Path) -> None:
    status = launch(command, path)
    if status:
        raise RegscaleError(
            f"python -m {' '.join(command)}",
            "failed",
            found=f"status {status}; {_last_line(path)}",
            fix=f"Read {path}, then run the study again.",
        )


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else "no word of it"
