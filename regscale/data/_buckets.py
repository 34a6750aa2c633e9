"""Sources of one image size each, and whose turn a batch of the run is: a function of its number.

With n of all N samples in a bucket, its batch number k is due at (k + 1/2) N / n, and batches come
in the order in which they are due (Webster's rule of apportionment). So N batches hold n of the
bucket, its share of the first b is n b / N to within (1 + m n / N) / 2 batches where there are m
buckets, and none is ever left out.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property, lru_cache
from heapq import heapify, heapreplace
from math import log as ln

import numpy as np

from regscale.data._order import order_of
from regscale.data._size import Size
from regscale.data._source import Source
from regscale.errors import RegscaleError
from regscale.types import Batch

log = logging.getLogger(__name__)


@lru_cache(maxsize=64)
def turn(counts: tuple[int, ...], number: int) -> tuple[int, int]:
    """(bucket, batches that it had before) of a batch of the run; `counts` are of samples."""
    total, time = sum(counts), number - len(counts)  # at most `number` batches are due by then
    had = [max(0, (2 * time * n + total) // (2 * total)) for n in counts]
    due = [(Fraction(2 * k + 1, n), i) for i, (k, n) in enumerate(zip(had, counts, strict=True))]
    heapify(due)
    for _ in range(number - sum(had)):
        _, i = due[0]
        had[i] += 1
        heapreplace(due, (Fraction(2 * had[i] + 1, counts[i]), i))
    owner = due[0][1]
    return owner, had[owner]


class Buckets:
    """Sources by name; each is read in its own order, every sample once in each epoch of its own.

    What needs one size, as a preview, takes that of the bucket next to a square.
    """

    def __init__(self, buckets: Mapping[str, Source], batch_size: int) -> None:
        self.buckets = dict(buckets)
        self.sources = tuple(buckets.values())
        self.batch_size = batch_size
        self.image_size = min((each.image_size for each in self.sources), key=_squareness)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Samples of each bucket."""
        counts = {name: source.num_samples for name, source in self.buckets.items()}
        for name, count in counts.items():
            if count < self.batch_size:
                text = "bucket %s has %s samples for a batch of %s: some come in it more than once"
                log.info(text, name, f"{count:,}", f"{self.batch_size:,}")
        return tuple(counts.values())

    @cached_property
    def starts(self) -> list[int]:
        """The number of each bucket's first sample, and that of all."""
        return [0, *np.cumsum(self.counts).tolist()]

    @property
    def num_samples(self) -> int:
        return self.starts[-1]

    @property
    def fingerprint(self) -> str:
        """Of all buckets, and of the size of a batch, which decides what comes when."""
        parts = [f"{each.image_size} {each.fingerprint}" for each in self.sources]
        text = "\n".join([*parts, str(self.batch_size)])
        return hashlib.blake2b(text.encode()).hexdigest()[:32]

    def order(self, counters: Sequence[int], seed: int) -> list[int]:
        """The samples at these places of one batch of the run, numbered through all buckets."""
        numbers = {counter // self.batch_size for counter in counters}
        if len(numbers) > 1:
            raise _of_several_sizes(f"places of {len(numbers)} batches of {self.batch_size:,}")
        (number,) = numbers
        owner, before = turn(self.counts, number)
        first = (before - number) * self.batch_size
        places = [first + counter for counter in counters]
        samples = order_of(self.sources[owner], places, seed=seed)
        return [self.starts[owner] + sample for sample in samples]

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The samples at `indices`, which are of one bucket."""
        owners = self._owners(indices)
        if len(owners) > 1:
            raise _of_several_sizes(f"samples of {len(owners)} buckets")
        (owner,) = owners
        local = [index - self.starts[owner] for index in indices]
        source = self.sources[owner]
        return replace(source.read(local, positions), image_size=source.image_size)

    def _owners(self, indices: Sequence[int]) -> Collection[int]:
        found = np.searchsorted(self.starts, np.asarray(indices), side="right") - 1
        return set(found.tolist())


def _squareness(size: Size) -> tuple[float, int]:
    height, width = size
    return abs(ln(height / width)), -height * width


def _of_several_sizes(found: str) -> RegscaleError:
    return RegscaleError(
        "data: kind buckets",
        "is read in the batches of a training, each of one size",
        found=found,
        fix="Take a batch size that divides data.batch_size, or one bucket's source as the data.",
    )
