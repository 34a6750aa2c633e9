"""Noise of each image from its own seed, so a picture does not depend on the batch around it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from regscale import chance
from regscale.types import Entangled


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """Standard normal numbers for images with these seeds; step 0 is the start."""

    seeds: tuple[int, ...]
    latent_shape: tuple[int, int, int]  # (C, H, W)
    token_shapes: tuple[tuple[int, int], ...]  # of (K, R)
    device: torch.device
    dtype: torch.dtype

    def __call__(self, step: int) -> Entangled:
        """The numbers of one solver step: leaves of (B, ...)."""
        tokens = tuple(
            self._normals(shape, f"sample/tokens{i}", step)
            for i, shape in enumerate(self.token_shapes)
        )
        return Entangled(self._normals(self.latent_shape, "sample/latents", step), tokens)

    def _normals(self, shape: Sequence[int], purpose: str, step: int) -> torch.Tensor:
        rows = [chance.normal(shape, seed=s, purpose=purpose, counter=step) for s in self.seeds]
        return torch.stack(rows).to(self.device, self.dtype)
