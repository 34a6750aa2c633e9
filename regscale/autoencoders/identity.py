"""No autoencoder: the pixels are the latents."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.types import Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One channel is the mean of red, green and blue, and is shown as grey."""

    channels: int = 3  # 1 or 3
    scale: float = 1.0  # of pixels in [-1, 1]

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise Invalid("channels", "is 1 or 3", found=self.channels, fix="1 is grey, 3 is RGB.")
        if not 0 < self.scale < inf:
            raise Invalid("scale", "is positive", found=self.scale, fix="1 keeps [-1, 1].")


class Pixels:
    """Images as latents in [-1, 1] times `scale`; exact in both directions."""

    def __init__(self, config: Config) -> None:
        self.channels, self.scale = config.channels, config.scale
        self.identity = f"identity-{config.channels}"

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.channels, height, width

    def encode(self, images: Tensor) -> Moments:
        """Pixels in [-1, 1] and no deviation."""
        pixels = images.float()
        if self.channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        mean = pixels / 127.5 - 1
        return Moments(mean, torch.zeros_like(mean))

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        return (moments.mean + moments.std * noise) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """uint8 RGB images, rounded to the nearest."""
        pixels = ((latents.float() / self.scale + 1) * 127.5).round().clamp(0, 255)
        return pixels.to(torch.uint8).repeat(1, 3 // self.channels, 1, 1)

    def to(self, device: torch.device) -> "Pixels":
        """Itself: there is nothing to move."""
        del device
        return self


def build(config: Config) -> Pixels:
    return Pixels(config)
