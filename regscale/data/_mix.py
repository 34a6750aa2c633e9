"""Several sources as one: which source a place of the run reads is a pure function of the counter.

The run is cut in blocks of 4,096 places; in each, every source has its share of places, permuted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regscale import chance
from regscale.data._merged import Array
from regscale.data._order import order_of
from regscale.data._source import Source
from regscale.errors import RegscaleError
from regscale.types import Batch, Features, Moments

BLOCK = 4096


def shares(weights: Sequence[float], size: int) -> list[int]:
    """`size` places divided by weight, by the method of the largest remainder; no source gets 0."""
    exact = np.asarray(weights) / sum(weights) * size
    whole = np.maximum(np.floor(exact).astype(np.int64), 1)
    while whole.sum() != size:
        step = 1 if whole.sum() < size else -1
        room = np.where((whole + step) >= 1, step * (exact - whole), -np.inf)
        whole[int(room.argmax())] += step
    return [int(each) for each in whole]


class Schedule:
    """Counters to (source, place in the run of that source)."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)
        self.shares = shares(weights, BLOCK)
        self._block = lru_cache(maxsize=4)(self._make_block)

    def __reduce__(self) -> tuple[type[Schedule], tuple[tuple[float, ...]]]:
        return Schedule, (self.weights,)

    def locate(self, counter: int, seed: int) -> tuple[int, int]:
        number, slot = divmod(counter, BLOCK)
        owners, places = self._block(seed, number)
        owner = int(owners[slot])
        return owner, number * self.shares[owner] + int(places[slot])

    def _make_block(self, seed: int, number: int) -> tuple[Array, Array]:
        """Of each place of a block: its source, and how many places that source had before."""
        order = chance.permutation(BLOCK, seed=seed, purpose="order/mix", counter=number)
        owners = np.repeat(np.arange(len(self.shares)), self.shares)[order]
        places = np.empty(BLOCK, dtype=np.int64)
        for owner, share in enumerate(self.shares):
            places[owners == owner] = np.arange(share)
        return owners, places


class Mix:
    """Sources by name, each read in its own order: every sample once in each epoch of its own."""

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float]) -> None:
        self.names = tuple(sources)
        self.sources = tuple(sources.values())
        self.schedule = Schedule([weights[name] for name in self.names])
        sizes = {source.image_size for source in self.sources}
        if len(sizes) > 1:
            raise RegscaleError(
                "data.sources",
                "have images of one size",
                found=", ".join(f"{n}: {s.image_size}" for n, s in sources.items()),
                fix="Set image_size alike.",
            )
        self.image_size = sizes.pop()

    @property
    def num_samples(self) -> int:
        return sum(source.num_samples for source in self.sources)

    @property
    def fingerprint(self) -> str:
        text = "\n".join(source.fingerprint for source in self.sources)
        return hashlib.blake2b(f"{text}\n{self.schedule.shares}".encode()).hexdigest()[:32]

    @property
    def identities(self) -> Mapping[str, str]:
        """Of the encoders of stored fields, which must be the same in every source."""
        found: dict[str, str] = {}
        for name, source in zip(self.names, self.sources, strict=True):
            for field, identity in getattr(source, "identities", {}).items():
                if found.setdefault(field, identity) != identity:
                    raise RegscaleError(
                        f"data.sources.{name}",
                        f"holds '{field}' of another encoder than the sources before it",
                        found=f"{identity}, before {found[field]}",
                        fix="Encode all sources with one encoder.",
                    )
        return found

    def order(self, counters: Sequence[int], seed: int) -> list[int]:
        """The samples at these places of the run, numbered through all sources."""
        located = [self.schedule.locate(counter, seed) for counter in counters]
        found = [0] * len(located)
        first = 0
        for owner, source in enumerate(self.sources):
            slots = [slot for slot, (each, _) in enumerate(located) if each == owner]
            samples = order_of(source, [located[slot][1] for slot in slots], seed=seed)
            for slot, sample in zip(slots, samples, strict=True):
                found[slot] = first + sample
            first += source.num_samples
        return found

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The samples at `indices`, each from its source, in the order asked for."""
        parts, slots, first = [], [], 0
        for source in self.sources:
            end = first + source.num_samples
            mine = [slot for slot, index in enumerate(indices) if first <= index < end]
            if mine:
                local = [indices[slot] - first for slot in mine]
                parts.append(source.read(local, [positions[slot] for slot in mine]))
                slots += mine
            first = end
        return _joined(parts, np.argsort(slots))


def _joined(parts: Sequence[Batch], order: Array) -> Batch:
    """The parts as one batch in this order; all hold the same fields."""
    values: dict[str, Any] = {}
    for name in ("keys", "positions", "images", "moments", "features", "labels", "captions"):
        held = [getattr(part, name) for part in parts]
        if any(value is None for value in held) and not all(value is None for value in held):
            with_it = next(p for p, v in zip(parts, held, strict=True) if v is not None)
            without = next(p for p, v in zip(parts, held, strict=True) if v is None)
            raise RegscaleError(
                "data.sources",
                f"have the same fields; {name} is not in all of them",
                found=f"sample {with_it.keys[0]} has it, {without.keys[0]} has not",
                fix="Name the same fields for every source.",
            )
        values[name] = None if held[0] is None else _join(held, order)
    return Batch(**values)


def _join(held: Sequence[Any], order: Array) -> Any:
    first = held[0]
    if isinstance(first, Tensor):
        return torch.cat(list(held))[torch.from_numpy(order)]
    if isinstance(first, dict):
        return {name: _join([each[name] for each in held], order) for name in first}
    if isinstance(first, Moments | Features):
        columns = [list(column) for column in zip(*held, strict=True)]
        joined: list[Any] = [None if c[0] is None else _join(c, order) for c in columns]
        return type(first)(*joined)
    every = [item for each in held for item in each]
    return tuple(every[place] for place in order)
