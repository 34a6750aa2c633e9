"""Solvers: from noise at t = 1 to data at t = 0 along a velocity field, each leaf at its own time.

A kind is a file here with `Config` and `build(config, path) -> Solver`. State and times are
float64 where the device has it: the model alone decides the precision of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass

from regscale.schedule import Schedule
from regscale.types import Entangled, LeafFloats

Field = Callable[[Entangled, LeafFloats], Entangled]  # velocities of a state at its leaves' times
Noise = Callable[[int], Entangled]  # normal numbers of step 0 (the start), 1, 2, ...


@dataclass(frozen=True, slots=True)
class Solver:
    """Integrates dx = field(x, t) dt from noise(0) at t = 1 to the state at t = 0, along the times
    of a schedule. Leaves that it holds stay as noise(0) has them.

    A solver that chooses its steps by what it sees solves images one by one, so that no image
    depends on the batch around it.
    """

    solve: Callable[[Field, Noise, Schedule], Entangled]
    one_by_one: bool = False

    def __call__(self, field: Field, noise: Noise, schedule: Schedule) -> Entangled:
        return self.solve(field, noise, schedule)
