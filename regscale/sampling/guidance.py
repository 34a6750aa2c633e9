"""Classifier-free guidance (arXiv 2207.12598), with a scale and an interval for image and token."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.types import Entangled, map_tensors

Field = Callable[[Entangled, float], Entangled]  # the velocity of a state at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A scale of 1 is the condition alone. Null for the token: as for the image.

    Intervals are times [low, high] in which the scale holds (arXiv 2404.07724); 0 is data.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    token_scale: float | None = None
    token_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for key in ("scale", "token_scale"):
            value = getattr(self, key)
            if value is not None and not isfinite(value):
                raise Invalid(key, "is a finite number", found=value, fix="1 is none.")
        for key in ("interval", "token_interval"):
            value = getattr(self, key)
            if value is not None and not 0 <= value[0] <= value[1] <= 1:
                raise Invalid(
                    key, "is [low, high] within [0, 1]", found=list(value), fix="0 is data."
                )

    def scales(self, t: float) -> tuple[float, float]:
        """(of the image, of the tokens) at time t."""
        low, high = self.interval
        token_low, token_high = (
            self.interval if self.token_interval is None else self.token_interval
        )
        token_scale = self.scale if self.token_scale is None else self.token_scale
        return (
            self.scale if low <= t <= high else 1.0,
            token_scale if token_low <= t <= token_high else 1.0,
        )


def guided(model: Any, condition: Any, null: Any, guidance: Config) -> Field:
    """null + scale * (condition - null), of the velocity; one forward where no scale differs
    from 1, one of twice the batch elsewhere."""
    both = map_tensors(lambda *pair: torch.cat(pair), condition, null)

    def field(state: Entangled, t: float) -> Entangled:
        scale, token_scale = guidance.scales(t)
        if scale == 1 and (token_scale == 1 or not state.tokens):
            return velocity(model, state, t, condition)
        twice = velocity(model, state.map(lambda x: torch.cat([x, x])), t, both)
        image = _extrapolate(twice.latents, scale)
        return Entangled(image, tuple(_extrapolate(x, token_scale) for x in twice.tokens))

    return field


def _extrapolate(twice: Tensor, scale: float) -> Tensor:
    conditional, unconditional = twice.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def velocity(model: Any, state: Entangled, t: float, condition: Any) -> Entangled:
    """The model's velocity of a state of any dtype, computed in fp32 inputs."""
    x = state.to(torch.float32)
    times = torch.full((len(x.latents),), t, device=x.latents.device)
    predicted = model(x.latents, x.tokens, times, (times,) * len(x.tokens), condition)
    return Entangled(predicted.latents, predicted.tokens).to(state.latents.dtype)
