"""Where a task is: its job, its rank, and the job's folder, in which the tasks of one job leave
word for each other and for the batch script.

    restart             the number of the newest incarnation, by the batch script
    stop                the file whose appearance asks the run to stop
    run.json            what the job runs
    failures-0/*.json   why tasks of incarnation 0 ended, one file for each different reason
    outcome-0.json      how incarnation 0 ended, where it ended well
    beats-0/3.json      rank 3 is alive
    exclude             nodes that the next incarnation avoids
    progress.json       the newest checkpoint, and the incarnation that made it
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regscale.failures import host, leave_word
from regscale.files import replacing


@dataclass(frozen=True, slots=True)
class Place:
    """One task of one incarnation of a job; `folder` is None outside a launcher."""

    job: str
    restart: int
    rank: int
    world_size: int
    host: str
    folder: Path | None

    @classmethod
    def current(cls) -> Place:
        env = os.environ
        folder = env.get("REGSCALE_JOB")
        return cls(
            job=env.get("SLURM_JOB_ID", ""),
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
            rank=int(env.get("RANK", env.get("SLURM_PROCID", "0"))),
            world_size=int(env.get("WORLD_SIZE", env.get("SLURM_STEP_NUM_TASKS", "1"))),
            host=host(),
            folder=Path(folder) if folder else None,
        )

    @property
    def failures(self) -> Path | None:
        return self.folder and self.folder / f"failures-{self.restart}"

    @property
    def beats(self) -> Path | None:
        return self.folder and self.folder / f"beats-{self.restart}"

    @property
    def outcome(self) -> Path | None:
        return self.folder and self.folder / f"outcome-{self.restart}.json"


def write(path: Path, value: dict[str, Any]) -> None:
    """A small file whole, its folder made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(value).encode() + b"\n")


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; empty where there is nothing whole."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def failed(place: Place, kind: str, message: str, *, nodes: tuple[str, ...] = ()) -> bool:
    """Leave word why this task ends. True on the task that says it first."""
    if place.failures is None:
        return place.rank == 0
    return leave_word(place.failures, kind, message, rank=place.rank, host=place.host, nodes=nodes)


def failures(place: Place) -> list[dict[str, Any]]:
    """The reasons why tasks of this incarnation ended, the first first."""
    folder = place.failures
    if folder is None or not folder.is_dir():
        return []
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [facts for facts in map(read, paths) if facts]
