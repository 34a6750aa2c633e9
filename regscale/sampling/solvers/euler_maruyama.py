"""Euler-Maruyama for the reverse SDE (SiT, eq. 5): the sampler of the paper's figures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from regscale.config import Invalid
from regscale.path import Path
from regscale.sampling.solvers import Field, Noise, Solver
from regscale.sampling.solvers._times import Step, StepsConfig, steps
from regscale.schedule import Schedule
from regscale.types import Entangled, LeafFloats, Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(StepsConfig):
    """`diffusion` is w(t): 2t as in the published code, or sigma(t) as in the paper's table.

    The last step, from `last_time` to 0, is deterministic; it counts among `num_steps`. A leaf with
    times of its own ends in such a step too, from `last_time` or less than a step above it.
    """

    diffusion: Literal["2t", "sigma"] = "2t"
    last_time: float = 0.04

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise Invalid("num_steps", "is 2 or more", found=self.num_steps, fix="Give 2 or more.")
        if not 0 < self.last_time < 1:
            raise Invalid("last_time", "is within (0, 1)", found=self.last_time, fix="Try 0.04.")


def build(config: Config, path: Path) -> Solver:
    """dx = (v - w s / 2) dt + sqrt(w) dW, with s the score, backwards in time; w, s and dt of each
    leaf are those at its own time."""
    width = _twice_t if config.diffusion == "2t" else _sigma(path)

    def drift(field: Field, x: Entangled, step: Step) -> Entangled:
        velocity = field(x, step.start)
        moving = step.start.zip(step.difference, lambda t, dt: t if dt else 1.0)
        half = step.start.zip(step.difference, lambda t, dt: 0.5 * width(t) if dt else 0.0)
        return velocity - path.score(velocity, x, _times(x, moving)) * half

    def solve(field: Field, noise: Noise, schedule: Schedule) -> Entangled:
        x = noise(0)
        for number, step in enumerate(_steps(config, schedule), start=1):
            x = x + drift(field, x, step) * step.difference
            spread = _spread(step, width)
            if any(spread.leaves):
                x = x + noise(number) * spread
        return x

    return Solver(solve)


def _steps(config: Config, schedule: Schedule) -> Iterator[Step]:
    """No leaf stops between 0 and `last_time`: from there or above it, one step ends it."""
    least = config.last_time * (1 - 1e-9)  # the grid's own rounding is no step
    last = schedule.last_with(config.last_time)
    grid = [
        schedule.times(u).map(lambda t: 0.0 if t < least else t)
        for u in schedule.grid(config.num_steps - 1, stop=last)
    ]
    yield from steps(grid)
    left = schedule.times(last).zip(grid[-1], lambda t, reached: t if reached else 0.0)
    yield from steps([left, schedule.times(0.0)])


def _spread(step: Step, width: Callable[[float], float]) -> LeafFloats:
    """The deviation of each leaf's noise: 0 where it stands still, and in the step that ends it."""
    ahead = step.difference.zip(step.stop, lambda dt, stop: -dt if stop else 0.0)
    return ahead.zip(step.start, lambda dt, t: (width(t) * dt) ** 0.5)


def _twice_t(t: float) -> float:
    return 2 * t


def _sigma(path: Path) -> Callable[[float], float]:
    return lambda t: float(path.sigma(torch.tensor(t, dtype=torch.float64)))


def _times(x: Entangled, times: LeafFloats) -> Times:
    batch = (len(x.latents),)
    return Times(
        x.latents.new_full(batch, times.image),
        tuple(x.latents.new_full(batch, t) for t in times.tokens),
    )
