"""The adaptive Dormand-Prince method of order 5 for the probability-flow ODE, by torchdiffeq."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from regscale.config import Invalid
from regscale.path import Path
from regscale.sampling.solvers import Field, Noise, Solver
from regscale.types import Entangled


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Tolerances of one step. Each image has its own steps, so images are solved one by one."""

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        for key in ("rtol", "atol"):
            if getattr(self, key) <= 0:
                raise Invalid(key, "is positive", found=getattr(self, key), fix="Try 1e-5.")


def build(config: Config, path: Path) -> Solver:  # noqa: ARG001
    """Integrate the leaves together from t = 1 to 0."""

    def solve(field: Field, noise: Noise) -> Entangled:
        start = noise(0)

        def slope(t: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return field(Entangled(leaves[0], leaves[1:]), float(t)).leaves

        times = torch.tensor([1.0, 0.0], dtype=start.latents.dtype, device=start.latents.device)
        path_of_leaves = odeint(
            slope, start.leaves, times, rtol=config.rtol, atol=config.atol, method="dopri5"
        )
        latents, *tokens = (leaf[-1] for leaf in path_of_leaves)
        return Entangled(latents, tuple(tokens))

    return Solver(solve, one_by_one=True)
