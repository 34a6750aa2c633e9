"""How pictures are made unless a command says otherwise."""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from regscale.config import Invalid, slot
from regscale.parallel import Precision
from regscale.sampling.guidance import Config as GuidanceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A solver, its guidance, and the precision of the products in the blocks (docs/numerics.md).

    `shift` s takes the even times t of a solver with fixed steps to s t / (1 + (s - 1) t) (SD3,
    arXiv 2403.03206, eq. 23): above 1 more steps are spent in noise. That of training is
    `times.shift`. Pictures during training have the engine's precision.
    """

    solver: Any = slot("regscale.sampling.solvers", "euler_maruyama")
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    shift: float = 1.0
    precision: Precision = "fp32"
    tf32: bool = True  # on CUDA, for the products that are left in fp32

    def __post_init__(self) -> None:
        check_shift(self.shift)


def check_shift(shift: float) -> None:
    """Refuse a shift that leaves no times."""
    if not 0 < shift < inf:
        raise Invalid("shift", "is a positive number", found=shift, fix="1 is none.")
