"""The adaptive Dormand-Prince method of order 5 for the probability-flow ODE, by torchdiffeq."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from regscale.config import Invalid
from regscale.path import Path
from regscale.sampling.solvers import Field, Noise, Solver
from regscale.schedule import Schedule, Segment
from regscale.types import Entangled


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Tolerances of one step. Each image has its own steps, so images are solved one by one, and
    `sampling.shift` does nothing."""

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        for key in ("rtol", "atol"):
            if getattr(self, key) <= 0:
                raise Invalid(key, "is positive", found=getattr(self, key), fix="Try 1e-5.")


def build(config: Config, path: Path) -> Solver:  # noqa: ARG001
    """Integrate the leaves together over u from 1 to 0: dx/du = v dt/du. It starts anew where a
    leaf starts or ends to move, so that the integrand is smooth throughout."""

    def solve(field: Field, noise: Noise, schedule: Schedule) -> Entangled:
        x = noise(0)
        for segment in schedule.segments():
            x = integrate(field, x, schedule, segment)
        return x

    def integrate(field: Field, x: Entangled, schedule: Schedule, segment: Segment) -> Entangled:
        def slope(u: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            state = Entangled(leaves[0], leaves[1:])
            velocity = field(state, schedule.times(float(u)))
            return (velocity * schedule.rates(float(u), segment)).leaves

        ends = torch.tensor(segment, dtype=x.latents.dtype, device=x.latents.device)
        path_of_leaves = odeint(
            slope,
            x.leaves,
            ends,
            rtol=config.rtol,
            atol=config.atol,
            method="dopri5",
            options={"step_t": ends[1:]},  # no step past a kink, nor past the end: t >= 0
        )
        rates = schedule.rates(segment[1], segment).leaves  # ends are interpolated, which rounds
        made = zip(path_of_leaves, x.leaves, rates, strict=True)
        latents, *tokens = (leaf[-1] if rate else kept for leaf, kept, rate in made)
        return Entangled(latents, tuple(tokens))

    return Solver(solve, one_by_one=True)
