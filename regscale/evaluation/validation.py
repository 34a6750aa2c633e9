"""Losses on held-out data at eight fixed times, with fixed noise: comparable between any two steps.

A training loss averages over random times and hides where a model still learns; these do not move
but by the weights. The times are the image's, and tokens have theirs beside it, as the schedule has
them; what is done by then is left out, as in training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from regscale.cluster import Cluster
from regscale.data import NoiseShapes, Source, draw_noise
from regscale.encoding import Towers
from regscale.objective import losses
from regscale.path import Path
from regscale.schedule import Schedule
from regscale.types import Draw, Entangled, Example, Times

TIMES = tuple((k + 0.5) / 8 for k in range(8))
SEED = 0  # of the noise: part of what the losses mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Held-out samples of a source as a run sees them."""

    source: Source
    shapes: NoiseShapes
    towers: Towers
    path: Path
    schedule: Schedule
    cluster: Cluster
    num_samples: int = 512
    batch_size: int = 64

    def __call__(self, model: Any) -> Mapping[str, float]:
        """`denoise@0.44` and, of each entangled target, `tokens_NAME@0.44`; and their means.
        Tokens that are done at a time have no entry for it, and no mean where that is always so.

        Collective. Every process makes as many forwards: a model may lie in parts on all of them.
        """
        count = min(self.num_samples, self.source.num_samples)
        names = ["denoise", *(f"tokens_{name}" for name in self.towers.entangled)]
        sums = torch.zeros(len(TIMES), len(names), dtype=torch.float64)
        rounds = -(-count // (self.batch_size * self.cluster.world_size))
        for number in range(rounds):
            start = (number * self.cluster.world_size + self.cluster.rank) * self.batch_size
            places = [min(start + i, count - 1) for i in range(self.batch_size)]
            own = torch.tensor([start + i < count for i in range(self.batch_size)])
            sums += self._sums(model, places, own)
        means = self.cluster.mean(sums) * self.cluster.world_size / count  # (8, names)
        return self._told(names, means)

    def _told(self, names: list[str], means: Tensor) -> dict[str, float]:
        """The means (8, names) of the leaves that move."""
        moving = [[0 < each < 1 for each in self.schedule.beside(t).leaves] for t in TIMES]
        overall: dict[str, float] = {}
        table: dict[str, float] = {}
        for name, column, moves in zip(names, means.T, zip(*moving, strict=True), strict=True):
            own = {f"{name}@{t:.2f}": float(column[k]) for k, t in enumerate(TIMES) if moves[k]}
            table |= own
            if own:
                overall[name] = fmean(own.values())
        return overall | table

    @torch.no_grad()
    def _sums(self, model: Any, places: list[int], own: Tensor) -> Tensor:
        """(8, names) of the samples that count."""
        batch = self.source.read(places, places)
        batch = replace(batch, noise=draw_noise(places, self.shapes, seed=SEED))
        batch = batch.to(self.cluster.device)
        example, noise = self.towers.encode(batch), batch.noise
        assert noise is not None, "drawn above"
        example = Example(clean=example.clean, features=(), condition=example.condition)
        mixed = Entangled(noise.latents, noise.tokens)
        keep = torch.ones(len(places), dtype=torch.bool, device=self.cluster.device)
        null = self.towers.conditioner.null(example.condition)
        ones, rows = noise.latents.new_ones(len(places)), []
        for t in TIMES:
            image, tokens = self.schedule.beside(t)
            times = Times(image * ones, tuple(each * ones for each in tokens))
            draw = Draw(times=times, noise=mixed, keep=keep)
            found = losses(_Velocities(model), example, draw, null=null, path=self.path)
            each = torch.stack([found.denoising, *found.tokens], dim=1).cpu().double()  # (B, names)
            rows.append((each * own[:, None]).sum(0))
        return torch.stack(rows)


@dataclass(frozen=True, slots=True)
class _Velocities:
    """A model whose projected hidden states are left aside."""

    model: Any

    def __call__(self, *args: Any) -> Any:
        return self.model(*args)._replace(aligned=())
