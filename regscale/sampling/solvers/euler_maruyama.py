"""Euler-Maruyama for the reverse SDE (SiT, eq. 5): the sampler of the paper's figures."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from regscale.config import Invalid
from regscale.path import Path
from regscale.sampling.solvers import Field, Noise, Solver
from regscale.sampling.solvers._times import StepsConfig, uniform_times
from regscale.types import Entangled, Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(StepsConfig):
    """`diffusion` is w(t): 2t as in the published code, or sigma(t) as in the paper's table.

    The last step, from `last_time` to 0, is deterministic; it counts among `num_steps`.
    """

    diffusion: Literal["2t", "sigma"] = "2t"
    last_time: float = 0.04

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise Invalid("num_steps", "is 2 or more", found=self.num_steps, fix="Give 2 or more.")
        if not 0 < self.last_time < 1:
            raise Invalid("last_time", "is within (0, 1)", found=self.last_time, fix="Try 0.04.")


def build(config: Config, path: Path) -> Solver:
    """dx = (v - w s / 2) dt + sqrt(w) dW, with s the score, backwards in time."""
    width = _twice_t if config.diffusion == "2t" else _sigma(path)

    def drift(field: Field, x: Entangled, t: float) -> Entangled:
        velocity = field(x, t)
        return velocity - (0.5 * width(t)) * path.score(velocity, x, _times(x, t))

    def solve(field: Field, noise: Noise) -> Entangled:
        x = noise(0)
        grid = uniform_times(1.0, config.last_time, config.num_steps - 1)
        for step, (t, t_next) in enumerate(pairwise(grid), start=1):
            dt = t_next - t
            x = x + dt * drift(field, x, t) + (width(t) * -dt) ** 0.5 * noise(step)
        return x - config.last_time * drift(field, x, config.last_time)

    return Solver(solve)


def _twice_t(t: float) -> float:
    return 2 * t


def _sigma(path: Path) -> Callable[[float], float]:
    return lambda t: float(path.sigma(torch.tensor(t, dtype=torch.float64)))


def _times(x: Entangled, t: float) -> Times:
    image = x.latents.new_full((len(x.latents),), t)
    return Times(image, (image,) * len(x.tokens))
