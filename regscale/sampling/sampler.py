"""Conditions and seeds to images, with a model that is ready."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regscale.autoencoders import Autoencoder
from regscale.conditioning import Conditioner
from regscale.sampling.guidance import Config as GuidanceConfig
from regscale.sampling.guidance import TargetGuidance, guided
from regscale.sampling.seeds import ImageNoise
from regscale.sampling.solvers import Noise, Solver
from regscale.schedule import Config as ScheduleConfig
from regscale.schedule import Schedule
from regscale.types import Entangled, map_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Image i depends on its condition, its seed and its given tokens alone, not on the batch
    around it.

    Tokens may be given for some targets, as the model knows them (normalised): one (B, K, R), or
    (1, K, R) for all images, or None a target. They stay as they are while the rest is sampled: a
    variation of their image. A negative condition is what guidance leads away from.
    """

    model: Any
    conditioner: Conditioner
    autoencoder: Autoencoder
    solver: Solver
    latent_shape: tuple[int, int, int]
    token_shapes: tuple[tuple[int, int], ...]
    device: torch.device
    schedule: Schedule | None = None  # None: all leaves at one time
    target_guidance: tuple[TargetGuidance, ...] = ()  # one per target, or none says more
    negative: Any = None  # a condition of one row that takes the place of the null

    @property
    def num_classes(self) -> int | None:
        """Of a model that a class alone tells what to draw; None where it reads a text."""
        return None if self.model.reads_text else self.conditioner.num_classes

    def state(
        self,
        condition: Any,
        seeds: Sequence[int],
        guidance: GuidanceConfig,
        given: Sequence[Tensor | None] = (),
    ) -> Entangled:
        """Latents and tokens at t = 0, in the solver's dtype."""
        size = 1 if self.solver.one_by_one else len(seeds)
        given = [None if x is None else x.expand(len(seeds), -1, -1) for x in given]
        parts = [
            self._solve(
                map_tensors(lambda field, i=i: field[i : i + size], condition),
                seeds[i : i + size],
                guidance,
                [None if x is None else x[i : i + size] for x in given],
            )
            for i in range(0, len(seeds), size)
        ]
        leaves = [torch.cat(leaf) for leaf in zip(*[p.leaves for p in parts], strict=True)]
        return Entangled(leaves[0], tuple(leaves[1:]))

    @torch.no_grad()
    def _solve(
        self,
        condition: Any,
        seeds: Sequence[int],
        guidance: GuidanceConfig,
        given: Sequence[Tensor | None],
    ) -> Entangled:
        condition = map_tensors(lambda field: field.to(self.device), condition)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        noise = ImageNoise(tuple(seeds), self.latent_shape, self.token_shapes, self.device, dtype)
        field = guided(
            self.model, condition, self._unwanted(condition), guidance, self.target_guidance
        )
        schedule = self.schedule or Schedule((ScheduleConfig(),) * len(self.token_shapes))
        held = [i for i, tokens in enumerate(given) if tokens is not None]
        assert all(schedule.targets[i].may_be_given for i in held), "no image is known beside them"
        return self.solver(field, _starting_from(given, noise), schedule.hold(held))

    def _unwanted(self, condition: Any) -> Any:
        """The null, or the negative condition, in the shapes of `condition`."""
        if self.negative is None:
            return self.conditioner.null(condition)
        return map_tensors(lambda row, like: row.to(like).expand_as(like), self.negative, condition)

    @torch.no_grad()
    def __call__(
        self,
        condition: Any,
        seeds: Sequence[int],
        guidance: GuidanceConfig,
        given: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Images (B, 3, SH, SW) uint8 on the CPU, one for each seed."""
        latents = self.state(condition, seeds, guidance, given).latents
        return self.autoencoder.decode(latents.float()).cpu()


def _starting_from(given: Sequence[Tensor | None], noise: Noise) -> Noise:
    """The noise, but for given tokens at the start."""

    def started(step: int) -> Entangled:
        drawn = noise(step)
        if step > 0 or not given:
            return drawn
        pairs = zip(drawn.tokens, given, strict=True)
        return Entangled(drawn.latents, tuple(z if x is None else x.to(z) for z, x in pairs))

    return started
