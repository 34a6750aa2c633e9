"""What a run has lived through: `history.jsonl` in its folder, a line where an incarnation of a job
began and one where it ended, and what the folder says about its steps."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

NAME = "history.jsonl"
_TAIL_BYTES = 65_536


def add(run: Path, event: str, **facts: Any) -> None:
    """One line, in one write; a run whose disk is full goes on without it."""
    line = json.dumps({"event": event, "time": round(time.time(), 1), **facts}) + "\n"
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError:
        return


def events(run: Path) -> list[dict[str, Any]]:
    """The last lines, some hundreds, the oldest first."""
    return _lines(run / NAME)


def newest_step(run: Path) -> int | None:
    """Of the checkpoints that were committed; not verified."""
    try:
        names = os.listdir(run / "checkpoints")
    except OSError:
        return None
    steps = [int(m[1]) for m in map(re.compile(r"step-(\d+)").fullmatch, names) if m]
    return max(steps, default=None)


def reports(run: Path) -> list[dict[str, Any]]:
    """The last figures of metrics.jsonl."""
    return [line for line in _lines(run / "metrics.jsonl") if "step" in line]


def reported_step(run: Path) -> int | None:
    """The last step whose figures were written."""
    lines = reports(run)
    return int(lines[-1]["step"]) if lines else None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # torn by a crash, or cut by the tail
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
