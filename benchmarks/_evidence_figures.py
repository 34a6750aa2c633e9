"""What the files of a finished run say, and what several runs say together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.stats import t as student

from benchmarks._evidence_run import MACHINES, marker, own_config
from benchmarks._evidence_study import AGAINST, EMPTY, GUIDANCE, OWN, WITH_TOKEN, Run, Study
from regscale.evaluation.rates import Rate
from regscale.evaluation.shapecaps import Table
from regscale.evaluation.suites.shapecaps import COUNTS

Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one run."""

    run: Run
    steps: int
    seconds: float  # of training, without starts
    machines: tuple[str, ...]
    drawings: Mapping[str, Table]  # of its evaluations that are done
    curve: Curve  # (step, loss of the latents)

    @property
    def own(self) -> Table:
        return self.drawings[OWN]

    @property
    def null(self) -> Table | None:
        return self.drawings.get(EMPTY)

    def not_drawn(self) -> list[str]:
        """Its evaluations that are missing, each in a line."""
        absent = [name for name in self.run.drawings if name not in self.drawings]
        return [f"{self.run.name}: not drawn: {name}" for name in absent]

    def seen(self) -> float:
        """The figure by which arms are compared: of seen prompts, loosely, the mean of kinds."""
        return self.own.overall().value


class Change(NamedTuple):
    """A row of the ablations: pictures of a run, and the row that they are compared with."""

    name: str
    result: Result
    table: Table
    against: str = ""


def read(study: Study, run: Run) -> Result | str:
    """The figures, or why there are none."""
    folder = study.folder(run)
    end = marker(folder)
    if end.get("reason") != "finished":
        return f"{run.name}: {_state(folder, end)}"
    drawings = {name: study.place(run, name) / COUNTS for name in run.drawings}
    if not drawings[OWN].exists():
        return f"{run.name}: trained, not evaluated"
    lines = _lines(folder / "metrics.jsonl")
    batch_size = own_config(folder)["training"]["batch_size"]
    machines = folder / "evidence" / MACHINES
    told = json.loads(machines.read_text()) if machines.exists() else []
    return Result(
        run=run,
        steps=int(str(end["step"])),
        seconds=_seconds(lines, batch_size),
        machines=tuple(f"{each['device']}, {each['threads']} threads" for each in told),
        drawings={
            name: Table.of(json.loads(path.read_text()))
            for name, path in drawings.items()
            if path.exists()
        },
        curve=[(line["step"], line["denoise"]) for line in lines],
    )


def best(results: Sequence[Result], seeds: Sequence[int]) -> str | None:
    """The arm with a token that has the highest mean over all seeds; None while one is missing."""
    means = {}
    for arm in WITH_TOKEN:
        found = [each.seen() for each in results if each.run.arm == arm]
        if len(found) < len(seeds):
            return None
        means[arm] = fmean(found)
    return max(means, key=lambda arm: means[arm])


def changes(base: Result, others: Sequence[Result]) -> list[Change]:
    """The base as it is, its weights drawn again, and what was trained with one change."""
    own = f"none: {base.run.arm}"
    drawn = [
        Change(name.replace("-", " "), base, table, own)
        for name, table in base.drawings.items()
        if name.startswith(GUIDANCE)
    ]
    trained = [
        Change(each.run.arm, each, each.own, AGAINST.get(each.run.arm, own)) for each in others
    ]
    return [Change(own, base, base.own), *drawn, *trained]


def mean_of(values: Sequence[float]) -> Rate | None:
    """Mean and 95% interval by Student's t, of numbers taken for normal; None of fewer than two."""
    if len(values) < 2:
        return None
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Rate(fmean(values), fmean(values) - half, fmean(values) + half)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the exact permutation test: of all signs, the share with a sum as far from 0.

    Of n differences it is at least 2 / 2^n.
    """
    observed = abs(sum(differences)) - 1e-12
    signs = list(product((1, -1), repeat=len(differences)))
    far = [abs(sum(s * d for s, d in zip(each, differences, strict=True))) for each in signs]
    return sum(each >= observed for each in far) / len(signs)


def _state(folder: Path, end: Mapping[str, object]) -> str:
    if end:
        return f"stopped at step {end['step']}, {end['reason']}"
    lines = _lines(folder / "metrics.jsonl")
    return f"not at its end, last report at step {lines[-1]['step']:,}" if lines else "not yet run"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Reports of training; a line that a crash tore is left out."""
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(text) for text in texts if text.endswith("\n")]
    return [line for line in found if "images_per_second" in line]


def _seconds(lines: Sequence[Mapping[str, float]], batch_size: int) -> float:
    """By the rate of each report, so that neither a kill nor a pause counts."""
    start = [{"step": 0}, *lines]
    return sum(
        (b["step"] - a["step"]) * batch_size / b["images_per_second"] for a, b in pairwise(start)
    )
