"""Random numbers as a pure function of (seed, purpose, counter), by NumPy's Philox.

Nothing here has a state: the same three values give the same numbers in any process, batch or
order, so no generator is ever saved or restored.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=4096)
def _word(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _generator(seed: int, purpose: str, counter: int) -> np.random.Generator:
    """Philox4x64: the key is (seed, purpose), the high half of the counter is the sample.

    The low half is Philox's own block number, so streams of 2^128 blocks never meet.
    """
    key = (seed % 2**64) | (_word(purpose) << 64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter << 128))


def normal(shape: Sequence[int], *, seed: int, purpose: str, counter: int = 0) -> Tensor:
    """Standard normal numbers, fp32 on the CPU."""
    numbers = _generator(seed, purpose, counter).standard_normal(prod(shape), dtype=np.float32)
    return torch.from_numpy(numbers).reshape(*shape)


def uniform(shape: Sequence[int], *, seed: int, purpose: str, counter: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), fp32 on the CPU."""
    numbers = _generator(seed, purpose, counter).random(prod(shape), dtype=np.float32)
    return torch.from_numpy(numbers).reshape(*shape)


def normals(shape: Sequence[int], *, seed: int, purpose: str, counters: Iterable[int]) -> Tensor:
    """`normal` for each counter, stacked: (B, *shape)."""
    return torch.stack([normal(shape, seed=seed, purpose=purpose, counter=c) for c in counters])


def uniforms(*, seed: int, purpose: str, counters: Iterable[int]) -> Tensor:
    """One uniform number for each counter: (B,)."""
    return torch.cat([uniform((1,), seed=seed, purpose=purpose, counter=c) for c in counters])


def permutation(size: int, *, seed: int, purpose: str, counter: int = 0) -> np.ndarray:
    """A permutation of range(size), int64."""
    return _generator(seed, purpose, counter).permutation(size)
