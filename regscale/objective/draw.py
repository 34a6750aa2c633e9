"""From the uniform and normal numbers of a batch to the chance of a training step."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.types import Draw, Entangled, Noise, Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The distribution of training times; mean and std are those of the underlying normal."""

    distribution: Literal["uniform", "logit_normal", "lognormal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise Invalid("std", "is positive", found=self.std, fix="Give a number above 0.")


def draw(noise: Noise, config: Config, *, dropout: float) -> Draw:
    """Times, noise and kept conditions of a batch: a function of its samples' counters alone."""
    t = training_times(noise.times, config)
    return Draw(
        times=Times(t, (t,) * len(noise.tokens)),
        noise=Entangled(noise.latents, noise.tokens),
        keep=noise.keep >= dropout,
    )


def training_times(uniform: Tensor, config: Config) -> Tensor:
    """Uniform numbers as times of the configured distribution, in [0, 1], fp32.

    logit_normal: t = sigmoid(n), n normal (SD3, arXiv 2403.03206, section 3.1).
    lognormal: the noise level s = e^n of EDM on the linear path, t = s / (1 + s) with
    n = mean + std z (EDM, arXiv 2206.00364, table 1); mean -1.2 and std 1.2 are EDM's.
    Both are sigmoid(n): s / (1 + s) = sigmoid(log s); they differ in the customary mean and std.
    """
    if config.distribution == "uniform":
        return uniform
    z = sqrt(2) * torch.erfinv((2 * uniform.double() - 1).clamp(-1 + 1e-12, 1 - 1e-12))
    return torch.sigmoid(config.mean + config.std * z).float()
