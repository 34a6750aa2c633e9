"""How pictures are made unless a command says otherwise."""

from dataclasses import dataclass, field
from typing import Any

from regscale.config import slot
from regscale.sampling.guidance import Config as GuidanceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A solver and its guidance."""

    solver: Any = slot("regscale.sampling.solvers", "euler_maruyama")
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
