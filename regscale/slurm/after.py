"""What follows when the tasks of a job have ended: done, failed, or requeue (status 75).

The batch script asks. The answer comes from what the tasks left behind and from the checkpoints;
srun's status only tells whether they were ended from outside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regscale.errors import RegscaleError
from regscale.slurm import history
from regscale.slurm.place import Place, failures, read, write

DONE, FAILED, REQUEUE = 0, 1, 75
MAX_IDLE_RESTARTS = 3
LONGEST = 300  # characters of a task's message; the output has all of it
WARNED = ("stop file", "SIGUSR1")
ENDED = ("SIGTERM", "SIGINT")
ENDED_STATUSES = (128 + 15, 128 + 2)  # srun's, of tasks that died of such a signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("status", type=int, help="srun's exit status")
    parser.add_argument("--preempted", action="store_true", help="Slurm ended this job for another")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with the job, and why."""

    status: int
    why: str
    exclude: tuple[str, ...] = ()


def run(options: argparse.Namespace) -> int:
    """Decide, tell, and note it in the run's history."""
    place = Place.current()
    if place.folder is None:
        raise RegscaleError(
            "REGSCALE_JOB",
            "names the job's folder",
            found="nothing",
            fix="This command is for launchers/job.sh.",
        )
    if int(_text(place.folder / "restart") or 0) > place.restart:
        sys.stdout.write("a newer incarnation of this job runs: nothing to do\n")
        return DONE
    name = read(place.folder / "run.json").get("run")
    folder = Path(name) if name else None
    verdict = decide(place, options.status, preempted=options.preempted, run=folder)
    _note(place, verdict, folder)
    word = {DONE: "done", FAILED: "failed", REQUEUE: "requeue"}[verdict.status]
    avoiding = f", avoiding {','.join(verdict.exclude)}" if verdict.exclude else ""
    sys.stdout.write(f"{word}{avoiding}: {verdict.why}\n")
    return verdict.status


def decide(place: Place, status: int, *, preempted: bool, run: Path | None) -> Verdict:
    """The verdict on an incarnation that is over."""
    assert place.outcome is not None, "a launcher made the folder"
    outcome, met = read(place.outcome), failures(place)
    reason = str(outcome.get("reason", ""))
    at = f" at step {outcome['step']:,}" if "step" in outcome else ""
    if reason == "finished":
        return Verdict(DONE, f"finished{at}")
    if reason in WARNED or (reason in ENDED and preempted):
        why = f"{'preempted' if preempted else 'stopped in time'}{at}"
        return _again(place, run, why, counted=run is not None)
    if reason in ENDED and ("step" in outcome or _meant(place, status)):
        return Verdict(DONE, f"ended by {reason}{at}; the same command goes on")
    first = _first_cause(met)
    if first is not None:
        return _failure(place, run, first)
    if status in ENDED_STATUSES and not preempted:
        return Verdict(DONE, "the tasks were ended from outside before they could save")
    if status == 0:
        return Verdict(DONE, "the command ended")
    return _again(place, run, f"a task died without a word (srun: {status})")


def _meant(place: Place, status: int) -> bool:
    """Whether tasks that SIGTERM met before they trained were told by a user. srun sends it too,
    to the others, when one task fails."""
    assert place.outcome is not None, "a launcher made the folder"
    told = place.outcome.stat().st_mtime_ns
    folder = place.failures
    before = folder is not None and any(p.stat().st_mtime_ns < told for p in folder.glob("*.json"))
    return status in (0, *ENDED_STATUSES) and not before


def _first_cause(met: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where one rank fails, others lose their lines to it: a reason goes before a symptom."""
    order = ("superseded", "error", "silent", "fault")
    return min(met, key=lambda facts: order.index(facts["kind"]), default=None)


def _failure(place: Place, run: Path | None, facts: dict[str, Any]) -> Verdict:
    why = f"{facts['message'][:LONGEST]} (rank {facts['rank']} on {facts['host']})"
    nodes = tuple(facts["nodes"]) if os.environ.get("REGSCALE_EXCLUDE_BAD_NODES") else ()
    if facts["kind"] == "superseded" or (facts["kind"] == "error" and not nodes):
        return Verdict(FAILED, why)
    return _again(place, run, why, exclude=nodes)


def _again(
    place: Place,
    run: Path | None,
    why: str,
    *,
    exclude: tuple[str, ...] = (),
    counted: bool = True,
) -> Verdict:
    """Requeue, unless that was tried too often without a new checkpoint or is not wanted. Of what
    has no checkpoints only deaths are counted, since the last warning."""
    assert place.folder is not None, "a launcher made the folder"
    limit = int(os.environ.get("REGSCALE_MAX_IDLE_RESTARTS", MAX_IDLE_RESTARTS))
    step = history.newest_step(run) if run else None
    last = read(place.folder / "progress.json")
    if not counted or not last or (step or 0) > last["step"]:
        last = {"step": step or 0, "restart": place.restart}
        write(place.folder / "progress.json", last)
    idle = place.restart - last["restart"]
    if counted and idle >= limit:
        none = f" without a checkpoint after step {last['step']:,}" if run else ""
        return Verdict(FAILED, f"{why}; {idle} restarts in a row{none}")
    if os.environ.get("REGSCALE_REQUEUE", "yes") == "no":
        return Verdict(DONE, f"{why}; REGSCALE_REQUEUE=no, the same command goes on")
    return Verdict(REQUEUE, why, exclude)


def _note(place: Place, verdict: Verdict, run: Path | None) -> None:
    assert place.folder is not None, "a launcher made the folder"
    if verdict.exclude:
        held = {*_text(place.folder / "exclude").split(","), *verdict.exclude} - {""}
        (place.folder / "exclude").write_text(",".join(sorted(held)))
    if place.beats is not None:
        shutil.rmtree(place.beats, ignore_errors=True)
    if run is not None:
        history.add(
            run,
            "end",
            job=place.job,
            restart=place.restart,
            step=history.newest_step(run) or 0,
            verdict={DONE: "done", FAILED: "failed", REQUEUE: "requeue"}[verdict.status],
            why=verdict.why,
        )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
