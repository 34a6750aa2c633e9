"""Random numbers as a pure function of (seed, purpose, counter), by NumPy's Philox.

Nothing here has a state: the same three values give the same numbers in any process, batch or
order, so no generator is ever saved or restored.
"""

import hashlib
import threading
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=4096)
def _word(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


class _Stream(threading.local):
    """One generator a thread, set to the place that is asked for: making one costs ten times that.

    Philox4x64: the key is (seed, purpose), the high half of the counter is the sample. The low
    half is Philox's own block number, so streams of 2^128 blocks never meet.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._state: Any = self._bits.state
        self._place = self._state["state"]
        self._numbers = np.random.Generator(self._bits)

    def at(self, seed: int, purpose: str, counter: int) -> np.random.Generator:
        self._place["key"][:] = seed % 2**64, _word(purpose)
        self._place["counter"][:] = 0, 0, counter % 2**64, counter >> 64
        self._bits.state = self._state
        return self._numbers


_stream = _Stream()
_generator = _stream.at


def normal(shape: Sequence[int], *, seed: int, purpose: str, counter: int = 0) -> Tensor:
    """Standard normal numbers, fp32 on the CPU."""
    numbers = _generator(seed, purpose, counter).standard_normal(prod(shape), dtype=np.float32)
    return torch.from_numpy(numbers).reshape(*shape)


def uniform(shape: Sequence[int], *, seed: int, purpose: str, counter: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), fp32 on the CPU."""
    numbers = _generator(seed, purpose, counter).random(prod(shape), dtype=np.float32)
    return torch.from_numpy(numbers).reshape(*shape)


def normals(shape: Sequence[int], *, seed: int, purpose: str, counters: Sequence[int]) -> Tensor:
    """`normal` for each counter, stacked: (B, *shape)."""
    numbers = np.empty((len(counters), prod(shape)), dtype=np.float32)
    for row, counter in zip(numbers, counters, strict=True):
        _generator(seed, purpose, counter).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(numbers).reshape(len(counters), *shape)


def uniforms(*, seed: int, purpose: str, counters: Sequence[int]) -> Tensor:
    """One uniform number for each counter: (B,)."""
    numbers = [_generator(seed, purpose, c).random(dtype=np.float32) for c in counters]
    return torch.from_numpy(np.array(numbers, dtype=np.float32))


def permutation(size: int, *, seed: int, purpose: str, counter: int = 0) -> np.ndarray:
    """A permutation of range(size), int64."""
    return _generator(seed, purpose, counter).permutation(size)
