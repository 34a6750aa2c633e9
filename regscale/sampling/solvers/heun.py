"""Heun's method for the probability-flow ODE: order 2, two velocities a step."""

from dataclasses import dataclass
from itertools import pairwise

from regscale.path import Path
from regscale.sampling.solvers import Field, Noise, Solver
from regscale.sampling.solvers._times import StepsConfig, uniform_times
from regscale.types import Entangled


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(StepsConfig):
    pass


def build(config: Config, path: Path) -> Solver:  # noqa: ARG001
    """x_(i+1) = x_i + dt (v(x_i, t_i) + v(x_i + dt v(x_i, t_i), t_(i+1))) / 2."""

    def solve(field: Field, noise: Noise) -> Entangled:
        x = noise(0)
        for t, t_next in pairwise(uniform_times(1.0, 0.0, config.num_steps)):
            dt, slope = t_next - t, field(x, t)
            x = x + (dt / 2) * (slope + field(x + dt * slope, t_next))
        return x

    return Solver(solve)
