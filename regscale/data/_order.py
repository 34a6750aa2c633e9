"""The run as one endless sequence: sample counter c is sample perm(seed, c // N)[c % N]."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from regscale import chance


@lru_cache(maxsize=2)
def _epoch(seed: int, size: int, epoch: int) -> np.ndarray:
    return chance.permutation(size, seed=seed, purpose="order", counter=epoch)


def sample_indices(counters: Sequence[int], *, size: int, seed: int) -> list[int]:
    """The samples at these places of the run: every sample once in each epoch of `size`."""
    return [int(_epoch(seed, size, counter // size)[counter % size]) for counter in counters]
