"""A small evaluation while a run is trained: always the same images and samples, averaged weights.

Every process draws its part under the engine's own layout; nothing is gathered but pictures.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regscale.cluster import Cluster
from regscale.config import Invalid, slots
from regscale.errors import RegscaleError
from regscale.evaluation import report
from regscale.evaluation.collecting import Place
from regscale.evaluation.compare import higher_is_better
from regscale.evaluation.metrics import Figure
from regscale.evaluation.pictures import of_files
from regscale.evaluation.provenance import Making
from regscale.evaluation.suites import Suite
from regscale.evaluation.validation import Validation
from regscale.files import replacing
from regscale.sampling import GuidanceConfig, Sampler, many

log = logging.getLogger(__name__)

BEST = "best.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Suites and held-out data by names of one's choice; none of either costs nothing."""

    evaluate_every: int = 0  # updates; 0: never
    suites: dict[str, Any] = slots("regscale.evaluation.suites")
    validation: dict[str, Any] = slots("regscale.data")
    num_validation: int = 512  # samples of each
    best: str = ""  # the figure by which the best checkpoint is known; empty: the first one
    keep_images: bool = False

    def __post_init__(self) -> None:
        if self.evaluate_every < 0 or self.num_validation < 1:
            raise Invalid(
                "evaluate_every" if self.evaluate_every < 0 else "num_validation",
                "is not negative, and num_validation positive",
                found=f"{self.evaluate_every}, {self.num_validation}",
                fix="0 evaluates never.",
            )
        names = [*self.suites, *self.validation]
        if len(set(names)) < len(names) or (self.evaluate_every and not names):
            raise Invalid(
                "suites",
                "and validation have names of their own, and one at least",
                found=", ".join(names) or "none",
                fix="Name each once, or leave out evaluate_every.",
            )
        if self.best and self.best.partition("/")[0] not in names:
            raise Invalid(
                "best",
                "is a figure of a suite or of held-out data",
                found=self.best,
                fix=f"Begin it with the name of one: {', '.join(names) or 'there are none'}.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class During:
    """Called with the number of updates done; collective."""

    every: int  # updates
    folder: Path  # of the run
    cluster: Cluster
    averaged: Callable[[], AbstractContextManager[None]]  # the model has averaged weights within
    sampler: Sampler
    guidance: GuidanceConfig
    making: Making  # all that is known before a step
    suites: Mapping[str, Suite] = field(default_factory=dict)
    validations: Mapping[str, Validation] = field(default_factory=dict)
    best: str = ""
    keep_images: bool = False

    def __call__(self, step: int) -> dict[str, float]:
        """Figures by `suite/figure` and losses by `data/loss@time`, also in evaluations/."""
        folder = self.folder / "evaluations" / f"during-{step:08d}"
        found: dict[str, float] = {}
        with self.averaged():
            for name, validation in self.validations.items():
                losses = validation(self.sampler.model)
                found |= {f"{name}/{loss}": value for loss, value in losses.items()}
            for name, suite in self.suites.items():
                self._draw(suite, folder / name)
        for name, suite in self.suites.items():
            figures = self._measure(suite, folder / name, name, step)
            found |= {f"{name}/{each.name}": each.value for each in figures}
        self.cluster.from_first(lambda: self._note(found, step))
        return found

    def best_step(self) -> int | None:
        """The step with the best figure so far."""
        held = read_best(self.folder)
        return None if held is None else int(held["step"])

    def _draw(self, suite: Suite, folder: Path) -> None:
        wanted = suite.wanted(self.sampler.num_classes)
        self.cluster.from_first(lambda: (folder / "images").mkdir(parents=True, exist_ok=True))
        for held, images in many.shares(
            self.sampler, wanted, guidance=self.guidance, cluster=self.cluster
        ):
            for index, image in zip(held, images, strict=True):
                with replacing(many.image_path(folder / "images", index)) as file:
                    about = {"condition": wanted[index].text, "seed": wanted[index].seed}
                    file.write(many.png(image, about))
        self.cluster.barrier()

    def _measure(self, suite: Suite, folder: Path, name: str, step: int) -> list[Figure]:
        count = len(suite.wanted(self.sampler.num_classes))
        paths = [many.image_path(folder / "images", index) for index in range(count)]
        pictures = of_files(paths, name=str(folder))
        outcome = suite.measure(pictures, Place(cluster=self.cluster, folder=folder))
        checkpoint = f"{self.folder.name} step {step}"
        making = replace(self.making, labels=suite.labels, seeds=suite.seeds, checkpoint=checkpoint)
        self.cluster.barrier()

        def write() -> None:
            told = report.evaluation(name, making, outcome.figures)
            report.write(told, folder)
            text = "\n\n".join(filter(None, (report.table(told), outcome.text)))
            (folder / "evaluation.txt").write_text(text + "\n")
            if not self.keep_images:
                shutil.rmtree(folder / "images", ignore_errors=True)

        self.cluster.from_first(write)
        return list(outcome.figures)

    def _note(self, found: Mapping[str, float], step: int) -> None:
        """best.json says which step was the best so far."""
        name = self.best or next(iter(found), "")
        if name not in found:
            raise RegscaleError(
                "evaluation.best",
                "is a figure of this evaluation",
                found=f"'{name}'; there are {', '.join(found) or 'none'}",
                fix="Name one of these, or leave it out.",
            )
        held = read_best(self.folder)
        value = found[name]
        if held is None or held["figure"] != name or _better(name, value, held["value"]):
            values = {"figure": name, "value": value, "step": step}
            with replacing(self.folder / BEST) as file:
                file.write((json.dumps(values) + "\n").encode())
            log.info("step %s is the best so far: %s %.4f", f"{step:,}", name, value)


def read_best(folder: Path) -> dict[str, Any] | None:
    """`figure`, `value` and `step` of the best evaluation of a run; None before the first."""
    try:
        values: dict[str, Any] = json.loads((folder / BEST).read_text())
    except (OSError, ValueError):
        return None
    return values if values.keys() >= {"figure", "value", "step"} else None


def _better(name: str, value: float, before: float) -> bool:
    higher = higher_is_better(name.partition("/")[2])
    return value > before if higher else value < before
