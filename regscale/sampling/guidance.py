"""Classifier-free guidance (arXiv 2207.12598), with a scale and an interval for image and token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.types import Entangled, LeafFloats, map_tensors

Field = Callable[[Entangled, LeafFloats], Entangled]  # velocities at the times of the leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A scale of 1 is the condition alone. Null for the token: as for the image.

    Intervals are times [low, high] of what is guided in which the scale holds (arXiv 2404.07724);
    0 is data.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    token_scale: float | None = None
    token_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_scales(self, "scale", "token_scale")
        check_intervals(self, "interval", "token_interval")

    def scales(self, times: LeafFloats, own: Sequence["TargetGuidance"]) -> LeafFloats:
        """What holds for each leaf at its time; `own` is what targets say for themselves."""
        scale = self.scale if self.token_scale is None else self.token_scale
        interval = self.interval if self.token_interval is None else self.token_interval
        tokens = (
            _within(each.interval or interval, t, scale if each.scale is None else each.scale)
            for each, t in zip(
                own or [TargetGuidance()] * len(times.tokens), times.tokens, strict=True
            )
        )
        return LeafFloats(_within(self.interval, times.image, self.scale), tuple(tokens))


@dataclass(frozen=True, slots=True)
class TargetGuidance:
    """Of one entangled target; None: as for the tokens of all."""

    scale: float | None = None
    interval: tuple[float, float] | None = None


def check_scales(section: object, *keys: str) -> None:
    """Refuse a guidance scale of a section that is no number."""
    for key in keys:
        value = getattr(section, key)
        if value is not None and not isfinite(value):
            raise Invalid(key, "is a finite number", found=value, fix="1 is none.")


def check_intervals(section: object, *keys: str) -> None:
    """Refuse a guidance interval of a section that holds no times."""
    for key in keys:
        value = getattr(section, key)
        if value is not None and not 0 <= value[0] <= value[1] <= 1:
            raise Invalid(key, "is [low, high] within [0, 1]", found=list(value), fix="0 is data.")


def _within(interval: tuple[float, float], t: float, scale: float) -> float:
    return scale if interval[0] <= t <= interval[1] else 1.0


def guided(
    model: Any,
    condition: Any,
    null: Any,
    guidance: Config,
    targets: Sequence[TargetGuidance] = (),
) -> Field:
    """null + scale * (condition - null), of the velocity; one forward where no scale differs
    from 1, one of twice the batch elsewhere."""
    both = map_tensors(lambda *pair: torch.cat(pair), condition, null)

    def field(state: Entangled, times: LeafFloats) -> Entangled:
        scales = guidance.scales(times, targets)
        if all(scale == 1 for scale in scales.leaves):
            return velocity(model, state, times, condition)
        twice = velocity(model, state.map(lambda x: torch.cat([x, x])), times, both)
        tokens = zip(twice.tokens, scales.tokens, strict=True)
        return Entangled(
            _extrapolate(twice.latents, scales.image), tuple(_extrapolate(x, s) for x, s in tokens)
        )

    return field


def _extrapolate(twice: Tensor, scale: float) -> Tensor:
    conditional, unconditional = twice.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def velocity(model: Any, state: Entangled, times: LeafFloats, condition: Any) -> Entangled:
    """The model's velocity of a state of any dtype, computed in fp32 inputs."""
    x = state.to(torch.float32)

    def filled(t: float) -> Tensor:
        return torch.full((len(x.latents),), t, device=x.latents.device)

    token_times = tuple(filled(t) for t in times.tokens)
    predicted = model(x.latents, x.tokens, filled(times.image), token_times, condition)
    return Entangled(predicted.latents, predicted.tokens).to(state.latents.dtype)
