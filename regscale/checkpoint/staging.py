"""Copies of a rank's pieces in the host's memory, so that training can go on while they are
written."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from regscale.checkpoint.format import Piece
from regscale.errors import RegscaleError

ALIGNMENT = 64  # bytes


class Staging:
    """One stretch of host memory, reused from save to save; page-locked where pieces lie on CUDA.

    It is as large as what it was last given: weights, moments and averages of this rank.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._locked = False

    @torch.no_grad()
    def copy(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The pieces with values of this moment. They last until the next call."""
        given = list(pieces)
        sizes = [math.ceil(_bytes(piece) / ALIGNMENT) * ALIGNMENT for piece in given]
        cuda = any(piece.values.is_cuda for piece in given)
        self._reserve(sum(sizes), locked=cuda)
        copies, offset = [], 0
        for piece, size in zip(given, sizes, strict=True):
            place = self._memory[offset : offset + _bytes(piece)].view(piece.values.dtype)
            place.copy_(piece.values.detach().reshape(-1), non_blocking=cuda)
            copies.append(replace(piece, values=place))
            offset += size
        if cuda:
            torch.cuda.current_stream().synchronize()
        return copies

    def _reserve(self, size: int, *, locked: bool) -> None:
        if len(self._memory) >= size and self._locked >= locked:
            return
        self._memory = torch.empty(0, dtype=torch.uint8)  # the old one goes before the larger comes
        self._memory, self._locked = torch.empty(size, dtype=torch.uint8), locked
        if locked and size:
            _lock(self._memory)


def _bytes(piece: Piece) -> int:
    return piece.values.numel() * piece.values.element_size()


def _lock(memory: Tensor) -> None:
    """Page-lock exactly this memory; torch's own pinned memory comes in powers of two."""
    runtime, address = torch.cuda.cudart(), memory.data_ptr()
    status = int(runtime.cudaHostRegister(address, memory.nbytes, 0))
    if status:
        raise RegscaleError(
            "host memory",
            f"{memory.nbytes / 2**30:.1f} GiB for copies of a checkpoint cannot be page-locked",
            found=f"CUDA error {status}",
            fix="Raise the limit of locked memory (ulimit -l) or the memory of the job.",
        )
    weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, address)
