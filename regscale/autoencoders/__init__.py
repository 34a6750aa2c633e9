"""Autoencoders: images to latents and back, frozen."""

from typing import Protocol

import torch
from torch import Tensor

from regscale.types import Moments


class Autoencoder(Protocol):
    """A kind is a file here with `Config` and `build(config) -> Autoencoder`."""

    @property
    def identity(self) -> str:
        """Of weights and preprocessing."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image of this size."""
        ...

    def encode(self, images: Tensor) -> Moments:
        """The posterior of (B, 3, SH, SW) uint8 images, unscaled, fp32."""
        ...

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        """A posterior sample, scaled for the backbone: (B, C, H, W)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, SH, SW) uint8 images."""
        ...

    def to(self, device: torch.device) -> "Autoencoder":
        """The same autoencoder on a device."""
        ...
