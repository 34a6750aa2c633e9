"""The path from data to noise: x_t = alpha(t) x + sigma(t) noise, leaf by leaf.

t = 0 is data, t = 1 is noise, velocity = dx/dt (SiT, arXiv 2401.08740, section 2).
"""

from math import pi
from typing import Literal, get_args

import torch
from torch import Tensor

from regscale.types import Entangled, Times

PathName = Literal["linear", "cosine"]


class Path:
    """Coefficients of the path and of its velocity at times of any shape."""

    def alpha(self, t: Tensor) -> Tensor:
        """The coefficient of the data."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """The coefficient of the noise."""
        raise NotImplementedError

    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        raise NotImplementedError

    def sigma_dot(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        raise NotImplementedError

    def time_of(self, noise_level: Tensor) -> Tensor:
        """The time at which sigma / alpha is `noise_level`."""
        raise NotImplementedError

    def interpolate(self, clean: Entangled, noise: Entangled, times: Times) -> Entangled:
        """x_t = alpha x + sigma noise."""
        return clean * times.map(self.alpha) + noise * times.map(self.sigma)

    def velocity(self, clean: Entangled, noise: Entangled, times: Times) -> Entangled:
        """dx_t/dt = alpha' x + sigma' noise (SiT, eq. 2)."""
        return clean * times.map(self.alpha_dot) + noise * times.map(self.sigma_dot)

    def score(self, velocity: Entangled, state: Entangled, times: Times) -> Entangled:
        """grad log p_t = (alpha v - alpha' x_t) / (sigma (alpha' sigma - alpha sigma')).

        (SiT, eq. 9, times alpha' above and below: no division by zero on either path for t > 0.)
        """
        coefficients = times.map(self._score_scale)
        velocity = velocity * times.map(self.alpha)
        state = state * times.map(self.alpha_dot)
        return (velocity - state) * coefficients

    def _score_scale(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return 1 / (sigma * (self.alpha_dot(t) * sigma - self.alpha(t) * self.sigma_dot(t)))


class Linear(Path):
    """alpha = 1 - t, sigma = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_of(self, noise_level: Tensor) -> Tensor:
        return noise_level / (1 + noise_level)


class Cosine(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * pi / 2)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -pi / 2 * torch.sin(t * pi / 2)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return pi / 2 * torch.cos(t * pi / 2)

    def time_of(self, noise_level: Tensor) -> Tensor:
        return torch.atan(noise_level) * 2 / pi


def build(name: PathName) -> Path:
    """The path of this name."""
    assert name in get_args(PathName), f"unknown path {name}"
    return {"linear": Linear, "cosine": Cosine}[name]()
