"""How pictures are made unless a command says otherwise."""

from dataclasses import dataclass, field
from typing import Any

from regscale.config import slot
from regscale.parallel import Precision
from regscale.sampling.guidance import Config as GuidanceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A solver, its guidance, and the precision of the products in the blocks (docs/numerics.md).

    Pictures during training have the engine's precision.
    """

    solver: Any = slot("regscale.sampling.solvers", "euler_maruyama")
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    precision: Precision = "fp32"
    tf32: bool = True  # on CUDA, for the products that are left in fp32
