"""Heun's method for the probability-flow ODE: order 2, two velocities a step."""

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
    """x_(i+1) = x_i + dt (v(x_i, t_i) + v(x_i + dt v(x_i, t_i), t_(i+1))) / 2, with each leaf's own
    dt, t_i and t_(i+1)."""

    def solve(field: Field, noise: Noise, schedule: Schedule) -> Entangled:
        x = noise(0)
        for t, t_next, dt in steps(map(schedule.times, schedule.grid(config.num_steps))):
            slope = field(x, t)
            both = slope + field(x + slope * dt, t_next)
            x = x + both * dt.map(lambda difference: difference / 2)
        return x

    return Solver(solve)
