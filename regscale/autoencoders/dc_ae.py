"""The deep-compression autoencoder (arXiv 2410.10733): 32 pixels to a latent, no posterior.

Its encoder is deterministic, so the moments' deviation is zero and posterior noise has no effect.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderDC

from regscale.autoencoders._frozen import Family, FrozenAutoencoder, Halves, Settings
from regscale.types import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """The default is the one of SANA 1.0; the ImageNet ones (dc-ae-*-in-1.0) have other scales."""

    model: str = "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers"
    scale: float = 0.41407
    latent_channels: int = 32
    factor: int = 32


def _halves(autoencoder: Any) -> Halves:
    return Halves(
        encoder=[autoencoder.encoder],
        decoder=[autoencoder.decoder],
        latent_channels=autoencoder.config.latent_channels,
        factor=autoencoder.spatial_compression_ratio,
    )


FAMILY = Family(
    kind="dc_ae",
    recipe="pixels in [-1, 1]; no posterior",
    source=AutoencoderDC,
    halves=_halves,
    moments=lambda latents: Moments(latents, torch.zeros_like(latents)),
)


def build(config: Config) -> FrozenAutoencoder:
    """The autoencoder, nothing loaded yet."""
    return FrozenAutoencoder(FAMILY, config)
