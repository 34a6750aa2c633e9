"""Batches of a run from any place in it: workers have no state, the position is one integer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from regscale import chance
from regscale.data._order import order_of
from regscale.data._source import Source
from regscale.errors import RegscaleError
from regscale.types import Batch, Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseShapes:
    """Of one sample: the latents (C, H, W) and each entangled target's tokens (K, R)."""

    latents: tuple[int, int, int]
    tokens: tuple[tuple[int, int], ...]


def draw_noise(counters: list[int], shapes: NoiseShapes, *, seed: int) -> Noise:
    """All chance of these samples, keyed by their counters."""

    def normals(shape: tuple[int, ...], purpose: str) -> torch.Tensor:
        return chance.normals(shape, seed=seed, purpose=purpose, counters=counters)

    return Noise(
        times=chance.uniforms(seed=seed, purpose="train/times", counters=counters),
        keep=chance.uniforms(seed=seed, purpose="train/keep", counters=counters),
        posterior=normals(shapes.latents, "train/posterior"),
        latents=normals(shapes.latents, "train/latents"),
        tokens=tuple(normals(s, f"train/tokens{i}") for i, s in enumerate(shapes.tokens)),
    )


class _Fault(NamedTuple):
    """A user's fault on its way out of a worker, whose exceptions arrive as plain text."""

    where: str
    what: str
    found: str
    fix: str


class _Samples(Dataset[Batch | _Fault]):
    """Indexed by a list of counters: the batch of these places of the run."""

    def __init__(self, source: Source, shapes: NoiseShapes, seed: int) -> None:
        self.source, self.shapes, self.seed = source, shapes, seed

    def __getitem__(self, counters: list[int]) -> Batch | _Fault:
        try:
            indices = order_of(self.source, counters, seed=self.seed)
            batch = self.source.read(indices, counters)
        except RegscaleError as error:
            return _Fault(error.where, error.what, error.found, error.fix)
        return replace(batch, noise=draw_noise(counters, self.shapes, seed=self.seed))


class _Places(Sampler[list[int]]):
    """The counters of one rank's part of each batch, without end."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size = start, batch_size
        self.part = batch_size // world_size
        self.offset = rank * self.part

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            first = position + self.offset
            yield list(range(first, first + self.part))
            position += self.batch_size


def batches(
    source: Source,
    shapes: NoiseShapes,
    *,
    seed: int,
    start: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """This rank's part of each batch of the run, from sample counter `start` on."""
    assert batch_size % world_size == 0, "checked by the recipe"
    loader = DataLoader(
        _Samples(source, shapes, seed),
        sampler=_Places(start, batch_size, rank, world_size),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    return _unwrapped(iter(loader))


def _unwrapped(loaded: Iterator[Batch | _Fault]) -> Iterator[Batch]:
    for batch in loaded:
        if isinstance(batch, _Fault):
            raise RegscaleError(batch.where, batch.what, found=batch.found, fix=batch.fix)
        yield batch
