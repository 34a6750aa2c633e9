"""The run as one endless sequence: sample counter c is sample perm(seed, c // N)[c % N].

A source may offer an order of its own, which is a pure function of counter and seed too.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from regscale import chance
from regscale.data._source import Ordered, Source

FLAT_LIMIT = 20_000_000  # samples: one permutation of more takes seconds and too much memory


@lru_cache(maxsize=2)
def _epoch(seed: int, size: int, epoch: int) -> np.ndarray:
    return chance.permutation(size, seed=seed, purpose="order", counter=epoch)


def order_of(source: Source, counters: Sequence[int], *, seed: int) -> list[int]:
    """The samples of a source at these places of the run."""
    if isinstance(source, Ordered):
        return source.order(counters, seed)
    return sample_indices(counters, size=source.num_samples, seed=seed)


def sample_indices(counters: Sequence[int], *, size: int, seed: int) -> list[int]:
    """The samples at these places of the run: every sample once in each epoch of `size`."""
    return [int(_epoch(seed, size, counter // size)[counter % size]) for counter in counters]
