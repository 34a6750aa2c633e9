"""What the pretrained autoencoders share: two lazy halves, latents scaled or standardised.

A kind brings a `Family`: how its file is read and what its encoder's output means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regscale.autoencoders._stats import ChannelStats, read_stats
from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.pretrained import DTYPES, Dtype, identity, load
from regscale.types import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`model` encodes and `decoder` decodes, each a hub id or a folder; null: the same."""

    model: str
    decoder: str | None = None
    subfolder: str | None = None  # of both, as "vae" in a pipeline's repository
    scale: float = 1.0  # latents = (sample - shift) * scale
    shift: float = 0.0
    stats: str | None = None  # a file of prepare latent_stats: instead of scale and shift
    latent_channels: int
    factor: int  # pixels a latent covers on each side
    decode_batch: int = 16  # images decoded at once
    dtype: Dtype = "fp32"  # moments are fp32 always

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise Invalid("scale", "is positive", found=self.scale, fix="SD's is 0.18215.")
        for key in ("latent_channels", "factor", "decode_batch"):
            if getattr(self, key) < 1:
                raise Invalid(
                    key, "is a positive number", found=getattr(self, key), fix="Give 1 or more."
                )


class Halves(NamedTuple):
    """A loaded autoencoder, and what its config says of the latents."""

    encoder: list[nn.Module | None]
    decoder: list[nn.Module | None]
    latent_channels: int
    factor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of pretrained autoencoder: its class, its halves, its posterior."""

    kind: str
    recipe: str  # preprocessing and posterior in words: part of the identity
    source: Any  # a class with from_pretrained
    halves: Callable[[Any], Halves]
    moments: Callable[[Tensor], Moments]  # from the encoder's output in fp32


class FrozenAutoencoder:
    """The frozen autoencoder. Each half is read at its first use, and the other half dropped."""

    def __init__(self, family: Family, config: Settings) -> None:
        self.family, self.config = family, config
        self._device = torch.device("cpu")

    @cached_property
    def encoder(self) -> nn.Sequential:
        """Pixels to what `Family.moments` takes."""
        return self._frozen(self._load(self.config.model).encoder)

    @cached_property
    def decoder(self) -> nn.Sequential:
        """Unscaled latents to pixels."""
        return self._frozen(self._load(self.config.decoder or self.config.model).decoder)

    @cached_property
    def stats(self) -> ChannelStats | None:
        """Mean and standard deviation of each channel, where the config names a file."""
        if self.config.stats is None:
            return None
        return read_stats(self.config.stats, self.config.latent_channels).to(self._device)

    def _frozen(self, parts: list[nn.Module | None]) -> nn.Sequential:
        half = nn.Sequential(*[part for part in parts if part is not None])
        half.to(self._device, DTYPES[self.config.dtype]).eval().requires_grad_(False)
        return half

    def _load(self, name: str) -> Halves:
        kind, config = self.family.kind, self.config
        options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        if config.subfolder is not None:
            options["subfolder"] = config.subfolder
        halves = self.family.halves(load(self.family.source, name, kind=kind, **options))
        channels, factor = halves.latent_channels, halves.factor
        if (channels, factor) != (config.latent_channels, config.factor):
            raise RegscaleError(
                f"{kind}: model {name}",
                f"does not fit latent_channels {config.latent_channels} and factor {config.factor}",
                found=f"latent_channels {channels} and factor {factor}",
                fix=f"Set autoencoder.latent_channels={channels} autoencoder.factor={factor}.",
            )
        return halves

    @cached_property
    def identity(self) -> str:
        """A hash of the encoder and its preprocessing: of all that stored moments depend on."""
        recipe = [self.family.recipe, self.config.dtype]
        return identity(self.family.kind, recipe, self.encoder.state_dict().values())

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W), from the config alone; `_load` holds the weights to it."""
        factor = self.config.factor
        if height % factor or width % factor:
            raise RegscaleError(
                f"{self.family.kind}: image size",
                f"is a multiple of {factor} on each side",
                found=f"{height}x{width}",
                fix=f"Crop to {height // factor * factor}x{width // factor * factor}.",
            )
        return self.config.latent_channels, height // factor, width // factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Moments:
        """The posterior of uint8 images, unscaled, fp32."""
        pixels = images.float() / 127.5 - 1
        with torch.autocast(images.device.type, enabled=False):
            encoded = self.encoder(pixels.to(DTYPES[self.config.dtype])).float()
        return self.family.moments(encoded)

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        """(sample - shift) * scale of sample = mean + std * noise; by `stats` where they are."""
        sample = moments.mean + moments.std * noise
        if self.stats is not None:
            return self.stats.standardise(sample)
        return (sample - self.config.shift) * self.config.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 images, cut to whole numbers and not rounded, as the published samplers do."""
        unscaled = self._unscaled(latents.float())
        images, dtype = [], DTYPES[self.config.dtype]
        with torch.autocast(latents.device.type, enabled=False):
            for part in torch.split(unscaled.to(dtype), self.config.decode_batch):
                pixels = self.decoder(part).float()
                images.append(torch.clamp(255 * ((pixels + 1) / 2), 0, 255).to(torch.uint8))
        return torch.cat(images)

    def _unscaled(self, latents: Tensor) -> Tensor:
        if self.stats is not None:
            return self.stats.restore(latents)
        return latents / self.config.scale + self.config.shift

    def to(self, device: torch.device) -> "FrozenAutoencoder":
        self._device = torch.device(device)
        self.__dict__.pop("stats", None)
        for half in ("encoder", "decoder"):
            if half in self.__dict__:
                getattr(self, half).to(self._device)
        return self
