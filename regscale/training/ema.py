"""Exponential moving averages of the weights: fp32, on the engine's own shards, several decays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.types import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Decays of the averaged weights; pictures and figures use the first."""

    decays: tuple[float, ...] = (0.9999,)

    def __post_init__(self) -> None:
        distinct = len(set(self.decays)) == len(self.decays) > 0
        if not distinct or not all(0 <= d < 1 for d in self.decays):
            raise Invalid(
                "decays",
                "are different numbers within [0, 1)",
                found=list(self.decays),
                fix="The paper: [0.9999].",
            )


class Ema:
    """After each update: average <- decay * average + (1 - decay) * weight.

    No communication, one foreach pass a decay. What is frozen or a buffer stays as it began.
    """

    def __init__(self, shards: Iterable[Shard], decays: Iterable[float]) -> None:
        self._shards = list(shards)
        self.averages = {
            decay: {shard.name: shard.master.clone() for shard in self._shards} for decay in decays
        }
        self._moving = [shard for shard in self._shards if shard.trainable]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights in after one update."""
        weights = [shard.master for shard in self._moving]
        for decay, average in self.averages.items():
            moving = [average[shard.name] for shard in self._moving]
            torch._foreach_lerp_(moving, weights, 1 - decay)

    def follow(self, shards: Iterable[Shard]) -> None:
        """Take the engine's shards anew, after parameters were frozen."""
        self._shards = list(shards)
        self._moving = [shard for shard in self._shards if shard.trainable]

    def weights(self, decay: float) -> Iterator[tuple[str, Tensor]]:
        """(name, flat average) of every tensor, as an engine takes them."""
        yield from self.averages[decay].items()
