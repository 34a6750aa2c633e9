"""Euler's method for the probability-flow ODE: order 1, one velocity a step."""

from dataclasses import dataclass

from regscale.path import Path
from regscale.sampling.solvers import Field, Noise, Solver
from regscale.sampling.solvers._times import StepsConfig, steps
from regscale.schedule import Schedule
from regscale.types import Entangled


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(StepsConfig):
    pass


def build(config: Config, path: Path) -> Solver:  # noqa: ARG001
    """x_(i+1) = x_i + dt v(x_i, t_i), with each leaf's own dt and t_i."""

    def solve(field: Field, noise: Noise, schedule: Schedule) -> Entangled:
        x = noise(0)
        for t, _, dt in steps(map(schedule.times, schedule.grid(config.num_steps))):
            x = x + field(x, t) * dt
        return x

    return Solver(solve)
