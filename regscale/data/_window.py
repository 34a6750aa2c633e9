"""Window mode: an order that reads few shards at a time, and copies of the next ones ahead.

Shards are permuted in each epoch; samples are permuted within windows of neighbouring shards.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from regscale import chance
from regscale.data._cache import gib
from regscale.data._merged import Array
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)


class Windows:
    """Counters to samples by two levels of shuffling: a pure function of seed, epoch and place."""

    def __init__(self, counts: Sequence[int], width: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.firsts = np.concatenate([[0], np.cumsum(self.counts)])
        self.width = width
        self.num_windows = -(-len(self.counts) // width)
        self._plan = lru_cache(maxsize=3)(self._make_plan)
        self._window = lru_cache(maxsize=3)(self._make_window)

    def __reduce__(self) -> tuple[type[Windows], tuple[list[int], int]]:
        return Windows, (self.counts.tolist(), self.width)

    def indices(self, counters: Sequence[int], seed: int) -> list[int]:
        """The samples at these places of the run."""
        found: list[int] = []
        for counter in counters:
            epoch, window, place = self._locate(counter, seed)
            found.append(int(self._window(seed, epoch, window)[place]))
        return found

    def near(self, counter: int, seed: int) -> list[int]:
        """The shards of the window of `counter`, then those of the next."""
        epoch, window, _ = self._locate(counter, seed)
        after = (epoch, window + 1) if window + 1 < self.num_windows else (epoch + 1, 0)
        both = (*self._shards(seed, epoch, window), *self._shards(seed, *after))
        return [int(shard) for shard in both]

    def _locate(self, counter: int, seed: int) -> tuple[int, int, int]:
        epoch, place = divmod(counter, int(self.firsts[-1]))
        _, ends = self._plan(seed, epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        return epoch, window, place - (int(ends[window - 1]) if window else 0)

    def _make_plan(self, seed: int, epoch: int) -> tuple[Array, Array]:
        """The order of shards, and the places where windows end."""
        order = chance.permutation(
            len(self.counts), seed=seed, purpose="order/shards", counter=epoch
        )
        sums = np.add.reduceat(self.counts[order], np.arange(0, len(order), self.width))
        return order, np.cumsum(sums)

    def _shards(self, seed: int, epoch: int, window: int) -> Array:
        order: Array = self._plan(seed, epoch)[0]
        return order[window * self.width : (window + 1) * self.width]

    def _make_window(self, seed: int, epoch: int, window: int) -> Array:
        """The samples of a window in their order."""
        shards = self._shards(seed, epoch, window)
        samples = np.concatenate([np.arange(self.firsts[s], self.firsts[s + 1]) for s in shards])
        number = epoch * self.num_windows + window
        order = chance.permutation(len(samples), seed=seed, purpose="order/window", counter=number)
        shuffled: Array = samples[order]
        return shuffled


class Ahead:
    """Copies shards in the background, once for each window.

    Those of the window itself come first: that marks them as used after all older copies, so that
    the next ones take the room of the oldest.
    """

    def __init__(self, copy: Callable[[int], object]) -> None:
        self.copy = copy
        self.asked: tuple[int, ...] = ()
        self.thread = threading.Thread()

    def ask(self, shards: Sequence[int]) -> None:
        """Begin with these shards unless that was asked before."""
        if self.asked == tuple(shards) or self.thread.is_alive():
            return
        self.asked = tuple(shards)
        self.thread = threading.Thread(target=self._run, args=(self.asked,), daemon=True)
        self.thread.start()

    def _run(self, shards: tuple[int, ...]) -> None:
        for shard in shards:
            try:
                self.copy(shard)
            except (OSError, RegscaleError) as error:  # its reader reports it
                log.debug("shard %s could not be copied ahead: %s", shard, error)


def refuse_small(capacity: int, sizes: Sequence[int], width: int) -> None:
    """Refuse a cache in which two windows may not fit: each would evict what the next one needs."""
    largest = max(sizes)
    needed = min(2 * width * largest, sum(sizes))
    if needed <= capacity:
        return
    fits = capacity // (2 * largest)
    narrower = f", or lower data.window to {fits}" if fits else ""
    raise RegscaleError(
        "data.cache_gib",
        "does not hold two windows of shards, the one that is read and the next",
        found=f"{gib(capacity)}; two of data.window={width} shards of up to {gib(largest)} take "
        + gib(needed),
        fix=f"Raise data.cache_gib to {math.ceil(needed / 2**30)}{narrower}.",
    )
