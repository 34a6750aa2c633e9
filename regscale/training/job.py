"""A run as live objects, and how it ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regscale.cluster import Cluster
from regscale.data import NoiseShapes, Source
from regscale.encoding import Towers
from regscale.objective import DrawConfig, Weights
from regscale.parallel import Engine
from regscale.path import Path as DiffusionPath
from regscale.schedule import Schedule
from regscale.training.config import Config
from regscale.training.ema import Ema


class Evaluation(Protocol):
    """What is measured on the way, with averaged weights."""

    @property
    def every(self) -> int:
        """Updates between two."""
        ...

    def __call__(self, step: int) -> Mapping[str, float]:
        """Figures by name. Collective."""
        ...

    def best_step(self) -> int | None:
        """The step of the best so far, whose checkpoint is kept."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that training needs, alive."""

    name: str
    folder: Path
    seed: int
    config: Config
    values: dict[str, Any]  # the whole run's config, for checkpoints
    cluster: Cluster
    source: Source
    shapes: NoiseShapes
    towers: Towers
    engine: Engine
    ema: Ema
    path: DiffusionPath
    times: DrawConfig
    schedule: Schedule
    weights: Weights
    dropout: float
    stop_steps: tuple[int | None, ...]  # one per aligned target
    preview: Callable[[int], None]  # collective
    evaluation: Evaluation | None
    flops: float | None  # of the backbone's training on one image; None: no MFU
    peak_flops: float | None  # of a device
    origin: dict[str, Any] | None  # the weights that a new run starts from
    attention: dict[str, str]  # what computes it: the same again makes the same bits
    complete: Callable[[dict[str, Any]], dict[str, Any]]  # a saved config with today's defaults

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def quantities(self) -> tuple[str, ...]:
        """The names of what a step measures."""
        tokens = [f"tokens_{name}" for name in self.towers.entangled]
        aligned = [f"align_{name}" for name in self.towers.aligned]
        return ("loss", "denoise", *tokens, *aligned, "grad")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: at which update, and 'finished' or the signal that stopped it."""

    step: int
    samples: int
    reason: str
