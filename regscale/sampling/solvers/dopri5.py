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
    """Tolerances of one step. The images of a batch share their steps, so a picture depends on
    its batch within these tolerances; other solvers do not have this."""

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

    return solve
