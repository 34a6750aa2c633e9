"""GenEval's scoring rules (arXiv 2310.11513) over any detector.

The rules of `evaluation/evaluate_images.py` of the authors' repository: a task includes objects
(class, count, colour, position relative to another group) and excludes some; of the objects of a
class the most confident are looked at. A detector returns them by class.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from regscale.errors import RegscaleError
from regscale.evaluation.rates import Rate, mean, wilson

POSITION_THRESHOLD = 0.1  # of the objects' own size, within which no relation holds
SAME_PLACE = 1e-3  # pixels
PER_PROMPT = 4  # pictures


class Found(NamedTuple):
    """An object in a picture: (left, top, right, bottom), the most confident ones first."""

    box: tuple[float, float, float, float]
    colour: str = ""


Detected = Mapping[str, Sequence[Found]]
Detector = Callable[[Tensor], Detected]  # of one picture, (3, SH, SW) uint8


@dataclass(frozen=True, slots=True)
class Task:
    """A line of GenEval's metadata."""

    tag: str
    prompt: str
    include: tuple[Mapping[str, Any], ...]
    exclude: tuple[Mapping[str, Any], ...] = ()

    def line(self) -> str:
        """As `metadata.jsonl` of the official folder has it."""
        values: dict[str, Any] = {"tag": self.tag, "include": list(self.include)}
        if self.exclude:
            values["exclude"] = list(self.exclude)
        return json.dumps(values | {"prompt": self.prompt})


def read_tasks(path: Path) -> list[Task]:
    """The authors' `evaluation_metadata.jsonl`."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        tasks = [
            Task(v["tag"], v["prompt"], tuple(v["include"]), tuple(v.get("exclude", ())))
            for v in lines
        ]
        if not tasks:
            raise ValueError("no task")
        return tasks
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegscaleError(
            path,
            "is not GenEval's metadata",
            found=repr(error),
            fix="Give evaluation_metadata.jsonl of the GenEval repository (prompts/).",
        ) from error


def correct(found: Detected, task: Task) -> bool:
    """Whether a picture shows what its task says."""
    matched: list[Sequence[Found] | None] = []
    right = True
    for wanted in task.include:
        count, name = wanted["count"], wanted["class"]
        objects = list(found.get(name, ()))[:count]
        fits = len(objects) >= count
        if fits and "color" in wanted:
            fits = sum(each.colour == wanted["color"] for each in objects) >= count
        if fits and "position" in wanted:
            relation, group = wanted["position"]
            others = matched[group]
            fits = others is not None and all(
                relation in relations(a.box, b.box) for a in objects for b in others
            )
        right = right and fits
        matched.append(objects if fits else None)
    excluded = any(len(found.get(each["class"], ())) >= each["count"] for each in task.exclude)
    return right and not excluded


def relations(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> set[str]:
    """Where a lies as seen from b: `left of`, `right of`, `above`, `below`.

    The difference of centres, shortened on each axis by a tenth of both sizes together, as a unit
    vector; more than half along an axis is a relation.
    """
    apart, offset = [], []
    for axis in (0, 1):
        centres = ((each[axis] + each[axis + 2]) / 2 for each in (a, b))
        sizes = sum(abs(each[axis + 2] - each[axis]) for each in (a, b))
        first, second = centres
        offset.append(first - second)
        length = max(abs(first - second) - POSITION_THRESHOLD * sizes, 0.0)
        apart.append(length if first > second else -length)
    if all(abs(each) < SAME_PLACE for each in apart):
        return set()
    norm = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    dx, dy = apart[0] / norm, apart[1] / norm
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


def scores(verdicts: Sequence[tuple[str, bool]]) -> dict[str, Rate]:
    """The share of right pictures by tag, and `overall`: the mean of the tags."""
    by_tag: dict[str, list[bool]] = defaultdict(list)
    for tag, right in verdicts:
        by_tag[tag].append(right)
    found = {tag: wilson(sum(by_tag[tag]), len(by_tag[tag])) for tag in sorted(by_tag)}
    return found | {"overall": mean(list(found.values()))} if found else {}
