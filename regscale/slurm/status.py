"""Where a run is: its step, speed and next checkpoint, its job, its restarts and what they cost."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from regscale.errors import RegscaleError
from regscale.slurm import history
from regscale.slurm.place import read

ALIVE_SECONDS = 300.0  # a lease without a heartbeat for longer is not believed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, as runs/digits")


def run(options: argparse.Namespace) -> int:
    sys.stdout.writelines(f"{line}\n" for line in lines(options.run, now=time.time()))
    return 0


def lines(folder: Path, *, now: float) -> Iterator[str]:
    """What a user wants to know in the morning."""
    if not folder.is_dir():
        raise RegscaleError(
            folder,
            "is no run folder",
            found="nothing there",
            fix="Give one such as runs/digits; it appears when the job's preflight is over.",
        )
    training = _training(folder)
    events = history.events(folder)
    reports = history.reports(folder)
    newest = history.newest_step(folder)
    step = max(newest or 0, int(reports[-1]["step"]) if reports else 0)
    total = training.get("num_steps")
    of = f" of {total:,} ({step / total:.1%})" if total else ""
    yield f"step         {step:,}{of}"
    yield f"state        {_state(folder, events, now)}"
    seconds = _seconds_a_step(reports, training)
    yield f"checkpoint   {_checkpoint(step, newest, training, seconds)}"
    if seconds and total and step < total:
        rate = reports[-1]["images_per_second"]
        left = _spoken((total - step) * seconds)
        yield f"speed        {rate:,.0f} img/s, {seconds:.3g} s a step; {left} to the end"
    yield from _restarts(events, step)


def _state(folder: Path, events: list[dict[str, Any]], now: float) -> str:
    lease = read(folder / "lease.json")
    age = now - float(lease.get("heartbeat", 0.0))
    if lease and age < ALIVE_SECONDS:
        job = f"job {lease['job']} (restart {lease['restarts']})" if lease["job"] else "a process"
        return f"running: {job}, first rank on {lease['host']}, heartbeat {age:.0f} s ago"
    ends = [event for event in events if event["event"] == "end"]
    if ends and ends[-1] is events[-1]:
        end = ends[-1]
        waiting = {"requeue": "waiting for Slurm", "failed": "failed", "done": "at rest"}
        return f"{waiting[end['verdict']]}: job {end['job']}, {end['why']}"
    reason = read(folder / "marker.json").get("reason")
    if reason:
        return f"at rest: {reason}"
    if lease:
        return f"died: last heartbeat {_spoken(age)} ago, job {lease['job'] or 'none'}"
    return "starting" if events else "nothing runs here"


def _checkpoint(
    step: int, newest: int | None, training: dict[str, Any], seconds: float | None
) -> str:
    have = "none yet" if newest is None else f"step {newest:,}"
    every, total = training.get("checkpoint_every"), training.get("num_steps")
    if not every or (total and step >= total):
        return have
    following = min((step // every + 1) * every, total or step + every)
    when = f", in about {_spoken((following - step) * seconds)}" if seconds else ""
    return f"{have}; next at {following:,}{when}"


def _restarts(events: list[dict[str, Any]], step: int) -> Iterator[str]:
    starts = [event for event in events if event["event"] == "start"]
    ends = {(e["job"], e["restart"]): e for e in events if e["event"] == "end"}
    lost = sum(event["lost"] for event in starts)
    if not starts:
        return
    jobs = len({event["job"] for event in starts})
    yield f"starts       {len(starts)}, of {jobs} jobs; {lost:,} steps made again, of {step:,}"
    for start in starts[-5:]:
        end = ends.get((start["job"], start["restart"]))
        why = f"{end['verdict']}: {end['why']}" if end else "no end was noted"
        if end is None and start is starts[-1]:
            why = "the last one"
        where = f"{start['ranks']} ranks on {start['nodes']}"
        number = f"job {start['job']} restart {start['restart']}"
        yield f"             {number}, {where}, from step {start['step']:,}: {why}"


def _training(folder: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    section = values.get("training") if isinstance(values, dict) else None
    return section if isinstance(section, dict) else {}


def _seconds_a_step(reports: list[dict[str, Any]], training: dict[str, Any]) -> float | None:
    rate = reports[-1].get("images_per_second") if reports else None
    return training["batch_size"] / rate if rate and "batch_size" in training else None


def _spoken(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if name != "h" else f"{seconds / unit:.1f} h"
    return f"{seconds / 86_400:.1f} days"
