"""Solvers: from noise at t = 1 to data at t = 0 along a velocity field.

A kind is a file here with `Config` and `build(config, path) -> Solver`. State and times are
float64 where the device has it: the model alone decides the precision of a picture.
"""

from collections.abc import Callable
from typing import Protocol

from regscale.types import Entangled

Field = Callable[[Entangled, float], Entangled]
Noise = Callable[[int], Entangled]  # normal numbers of step 0 (the start), 1, 2, ...


class Solver(Protocol):
    """Integrates dx = field(x, t) dt from t = 1 to 0."""

    def __call__(self, field: Field, noise: Noise) -> Entangled:
        """The state at t = 0, from noise(0) at t = 1."""
        ...
