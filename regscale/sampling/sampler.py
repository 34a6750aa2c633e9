"""Conditions and seeds to images, with a model that is ready."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regscale.autoencoders import Autoencoder
from regscale.conditioning import Conditioner
from regscale.sampling.guidance import Config as GuidanceConfig
from regscale.sampling.guidance import guided
from regscale.sampling.seeds import ImageNoise
from regscale.sampling.solvers import Solver
from regscale.types import Entangled, map_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Image i depends on its condition and its seed alone, not on the batch around it."""

    model: Any
    conditioner: Conditioner
    autoencoder: Autoencoder
    solver: Solver
    latent_shape: tuple[int, int, int]
    token_shapes: tuple[tuple[int, int], ...]
    device: torch.device

    def state(self, condition: Any, seeds: Sequence[int], guidance: GuidanceConfig) -> Entangled:
        """Latents and tokens at t = 0, in the solver's dtype."""
        size = 1 if self.solver.one_by_one else len(seeds)
        parts = [
            self._solve(
                map_tensors(lambda field, i=i: field[i : i + size], condition),
                seeds[i : i + size],
                guidance,
            )
            for i in range(0, len(seeds), size)
        ]
        leaves = [torch.cat(leaf) for leaf in zip(*[p.leaves for p in parts], strict=True)]
        return Entangled(leaves[0], tuple(leaves[1:]))

    @torch.no_grad()
    def _solve(self, condition: Any, seeds: Sequence[int], guidance: GuidanceConfig) -> Entangled:
        condition = map_tensors(lambda field: field.to(self.device), condition)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        noise = ImageNoise(tuple(seeds), self.latent_shape, self.token_shapes, self.device, dtype)
        null = self.conditioner.null(condition)
        return self.solver(guided(self.model, condition, null, guidance), noise)

    @torch.no_grad()
    def __call__(self, condition: Any, seeds: Sequence[int], guidance: GuidanceConfig) -> Tensor:
        """Images (B, 3, SH, SW) uint8 on the CPU, one for each seed."""
        latents = self.state(condition, seeds, guidance).latents
        return self.autoencoder.decode(latents.float()).cpu()
