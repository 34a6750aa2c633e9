"""From the uniform and normal numbers of a batch to the chance of a training step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.path import Path
from regscale.schedule import Schedule, shifted
from regscale.types import Draw, Entangled, Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The distribution of training times; mean and std are those of the underlying normal.

    A shift s then takes t to s t / (1 + (s - 1) t) (SD3, arXiv 2403.03206, eq. 23): larger latents
    need more noise to lose as much, by about s = sqrt(C H W / 4096). With `shift_places` it is that
    of latents of so many places, and grows with the places H W of a batch as sqrt(H W / places).
    """

    distribution: Literal["uniform", "logit_normal", "lognormal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    shift_places: int | None = None  # 1024 are those of 256 px; null: all are shifted alike

    def __post_init__(self) -> None:
        for key in ("std", "shift", "shift_places"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise Invalid(key, "is positive", found=value, fix="Give a number above 0.")

    def at(self, height: int, width: int) -> Config:
        """Of latents of these sides (eq. 23, with places for pixels)."""
        if self.shift_places is None:
            return self
        return replace(self, shift=self.shift * sqrt(height * width / self.shift_places))


def draw(noise: Noise, config: Config, *, dropout: float, path: Path, schedule: Schedule) -> Draw:
    """Times, noise and kept conditions of a batch: a function of its samples' counters alone.

    Targets with times of their own draw them from the same distribution; where some lead, it is
    that of u.
    """
    config = config.at(*noise.latents.shape[-2:])
    u = training_times(noise.times, config, path)
    own = [training_times(drawn, config, path) for drawn in noise.token_times]
    times, moving = schedule.training(u, own)
    return Draw(
        times=times,
        noise=Entangled(noise.latents, noise.tokens),
        keep=noise.keep >= dropout,
        moving=moving,
    )


def training_times(uniform: Tensor, config: Config, path: Path) -> Tensor:
    """Uniform numbers as times of the configured distribution, in [0, 1], fp32.

    With n = mean + std z and z normal,
    logit_normal: t = 1 / (1 + e^-n) (SD3, arXiv 2403.03206, section 3.1);
    lognormal: the time at which sigma / alpha = e^n (EDM, arXiv 2206.00364, table 1; EDM's mean
    and std are -1.2 and 1.2). On the linear path the two are one formula.
    """
    if config.distribution == "uniform":
        return shifted(uniform, config.shift)
    precise = uniform if uniform.device.type == "mps" else uniform.double()  # MPS has no float64
    z = sqrt(2) * torch.erfinv((2 * precise - 1).clamp(-1 + 1e-7, 1 - 1e-7))
    n = config.mean + config.std * z
    if config.distribution == "logit_normal":
        return shifted(torch.sigmoid(n), config.shift).float()
    return shifted(path.time_of(n.exp()), config.shift).float()
