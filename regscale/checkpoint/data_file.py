"""Reading one safetensors file of a checkpoint, by pieces or by blocks, each verified."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from regscale.checkpoint.files import reported
from regscale.checkpoint.format import RESTORE
from regscale.checkpoint.part import HASH_BYTES
from regscale.errors import RegscaleError

UNREADABLE = "cannot be read"


class DataFile:
    """One safetensors file and its index. Its header is verified before anything else is read."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path, self.size = path, int(index["size"])
        self.block_bytes: int = index["block_bytes"]
        self.num_blocks = len(index["blocks"])
        self._blocks: list[str] = index["blocks"]
        self._header: dict[str, Any] = index["header"]
        self._header_is_intact = False
        self._descriptor: int | None = None

    def read(self, into: memoryview, offset: int, expected: str, what: str) -> None:
        """Fill `into` from `offset`; its digest has to be `expected`."""
        if not self._header_is_intact:
            head = memoryview(bytearray(self._header["size"]))
            self._fill(head, 0, self._header["digest"], "the header")
            self._header_is_intact = True
        self._fill(into, offset, expected, what)

    def block(self, number: int) -> tuple[int, memoryview]:
        """The offset and the bytes of a block."""
        start = number * self.block_bytes
        stop = min(start + self.block_bytes, self.size)
        scratch = memoryview(bytearray(stop - start))
        self.read(scratch, start, self._blocks[number], f"block {number}")
        return start, scratch

    def read_by_blocks(self, into: memoryview, offset: int) -> None:
        """Fill `into` from `offset`, verifying every block that it touches."""
        end = offset + len(into)
        for number in range(offset // self.block_bytes, -(-end // self.block_bytes)):
            start, block = self.block(number)
            first, last = max(offset, start), min(end, start + len(block))
            into[first - offset : last - offset] = block[first - start : last - start]

    def _fill(self, into: memoryview, offset: int, expected: str, what: str) -> None:
        hasher = xxhash.xxh3_128()
        position, left = offset, into
        with reported(self.path, UNREADABLE):
            descriptor = self._open()
            while left:
                count = os.preadv(descriptor, [left[:HASH_BYTES]], position)
                if count == 0:
                    break
                hasher.update(left[:count])
                position, left = position + count, left[count:]
        if left or hasher.hexdigest() != expected:
            raise RegscaleError(
                f"{self.path}: bytes {offset}-{offset + len(into)} ({what})",
                f"do not match their digest {expected}",
                found=f"the end of the file at {position}" if left else hasher.hexdigest(),
                fix=RESTORE,
            )

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """Where the elements [start, stop) of a tensor lie, from byte `offset`."""

    name: str
    start: int
    stop: int
    offset: int
    digest: str
    file: DataFile

    def read(self, into: memoryview, first: int, item_bytes: int) -> None:
        """Fill `into` with the piece's elements from the tensor's element `first` on.

        A small piece is verified as a whole, a part of a large one by the file's blocks.
        """
        size = (self.stop - self.start) * item_bytes
        skip = (first - self.start) * item_bytes
        what = f"{self.name}[{self.start}:{self.stop}]"
        if len(into) == size:
            self.file.read(into, self.offset, self.digest, what)
        elif size <= self.file.block_bytes:
            scratch = memoryview(bytearray(size))
            self.file.read(scratch, self.offset, self.digest, what)
            into[:] = scratch[skip : skip + len(into)]
        else:
            self.file.read_by_blocks(into, self.offset + skip)
