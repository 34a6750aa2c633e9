"""The memory in which workers hand batches over.

It is written again and again: the fresh pages of new shared memory cost more than the copy that the
parent makes of a batch, which leaves the memory to the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, UntypedStorage

from regscale.types import Batch


class Ring:
    """A worker's memory: a slot for each batch under way, in it the storages of its tensors."""

    def __init__(self, num_slots: int) -> None:
        self._slots: list[list[UntypedStorage]] = [[] for _ in range(num_slots)]
        self._turn = self._used = 0

    def turn(self) -> None:
        """Begin a batch in the memory of the oldest one."""
        self._turn, self._used = (self._turn + 1) % len(self._slots), 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of the batch that was begun."""
        slot, size = self._slots[self._turn], max(1, dtype.itemsize * prod(shape))
        if self._used == len(slot) or slot[self._used].nbytes() < size:
            slot[self._used : self._used + 1] = [UntypedStorage._new_shared(size)]
        storage = slot[self._used]
        self._used += 1
        tensor = torch.empty(0, dtype=dtype)
        return tensor.set_(storage, 0, tuple(shape))  # type: ignore[call-overload,no-any-return]


_ring: Ring | None = None  # of this process, if it is a worker


def begin(num_slots: int) -> None:
    """This process is a worker of which at most `num_slots` - 1 batches are unread."""
    global _ring
    _ring = Ring(num_slots)


def turn() -> None:
    """The next batch begins."""
    if _ring is not None:
        _ring.turn()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor of the batch."""
    return torch.empty(shape, dtype=dtype) if _ring is None else _ring.empty(shape, dtype)


def placed(batch: Batch) -> Batch:
    """The batch of a worker with all of its tensors in memory that the parent sees."""
    if _ring is None:
        return batch
    return batch.map(lambda t: t if t.is_shared() else empty(t.shape, t.dtype).copy_(t))


class Taken:
    """Copies of what workers hand over, in the parent. Their memory stays mapped here."""

    def __init__(self) -> None:
        self._mapped: dict[int, UntypedStorage] = {}

    def __call__(self, batch: Batch) -> Batch:
        return batch.map(self._copy)

    def _copy(self, tensor: Tensor) -> Tensor:
        if not tensor.is_shared():  # already copied, to pinned memory
            return tensor
        storage = tensor.untyped_storage()
        self._mapped[storage.data_ptr()] = storage
        return tensor.clone()
