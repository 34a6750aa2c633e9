"""Autoencoders with a Gaussian posterior (arXiv 2112.10752): Stable Diffusion's and its heirs.

REG encodes with sd-vae-ft-mse and decodes with sd-vae-ft-ema, both f8d4, which is the default.
SDXL's, SD3's, FLUX's and the end-to-end tuned ones differ in settings alone: configs/parts/.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from regscale.autoencoders._frozen import Family, FrozenAutoencoder, Halves, Settings
from regscale.types import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """`model` encodes and `decoder` decodes, each a hub id or a folder; null: the same."""

    model: str = "stabilityai/sd-vae-ft-mse"
    decoder: str | None = "stabilityai/sd-vae-ft-ema"
    scale: float = 0.18215
    latent_channels: int = 4
    factor: int = 8


def _halves(vae: Any) -> Halves:
    return Halves(
        encoder=[vae.encoder, vae.quant_conv],
        decoder=[vae.post_quant_conv, vae.decoder],
        latent_channels=vae.config.latent_channels,
        factor=2 ** (len(vae.config.block_out_channels) - 1),
    )


def _moments(stacked: Tensor) -> Moments:
    """From mean and log-variance, stacked along the channels."""
    mean, log_variance = stacked.chunk(2, dim=1)
    return Moments(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))


FAMILY = Family(
    kind="sd_vae",
    recipe="pixels in [-1, 1]; log-variance clamped to [-30, 20]",
    source=AutoencoderKL,
    halves=_halves,
    moments=_moments,
)


def build(config: Config) -> FrozenAutoencoder:
    """The autoencoder, nothing loaded yet."""
    return FrozenAutoencoder(FAMILY, config)
