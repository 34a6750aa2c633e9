"""What one writer saves: a safetensors file of pieces, and an index with their digests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from regscale.checkpoint.files import reported, write_all, write_file
from regscale.checkpoint.format import (
    BLOCK_BYTES,
    CODES,
    DTYPES,
    Phase,
    Piece,
    data_name,
    index_name,
    no_phase,
    seal,
)
from regscale.errors import RegscaleError

UNSAVED = "this checkpoint could not be saved, older ones are as they were"
HASH_BYTES = 2**20  # stays in the cache between two hashes and the write


def write_part(
    folder: Path,
    writer: int,
    pieces: Iterable[Piece],
    *,
    block_bytes: int = BLOCK_BYTES,
    phase: Phase = no_phase,
) -> str:
    """Write the file of one writer and its index; return the index's digest, for `commit`.

    Writers are numbered from 0 without gaps. How ranks are grouped into writers, and so the
    number of files (`max_writers`), is the caller's choice. Safe to call from a thread as long as
    the pieces do not change meanwhile. Where it fails, the caller has to `abandon` the folder.
    """
    given = list(pieces)
    stored = sorted((p for p in given if p.start < p.stop), key=_placement)
    path = folder / data_name(writer)
    with reported(path, UNSAVED):
        with open(path, "xb", buffering=0) as raw:
            file = HashedFile(raw, block_bytes, phase)
            header = _header(stored)
            head = {"size": len(header), "digest": file.write(memoryview(header))}
            rows = [_write_piece(file, piece) for piece in stored]
            file.finish()
        phase("index")
        index, index_digest = seal(
            {
                "header": head,
                "size": file.position,
                "block_bytes": block_bytes,
                "blocks": file.blocks,
                "pieces": rows,
                "tensors": {p.name: _description(p) for p in given},
            }
        )
        write_file(folder / index_name(writer), index)
    phase("part")
    return index_digest


class HashedFile:
    """Writes bytes once, and on the way hashes them per call and per block."""

    def __init__(self, file: BinaryIO, block_bytes: int, phase: Phase) -> None:
        self.position = 0
        self.blocks: list[str] = []
        self._file, self._block_bytes, self._phase = file, block_bytes, phase
        self._block = xxhash.xxh3_128()

    def write(self, data: memoryview) -> str:
        """Write all of `data` and return its digest."""
        whole = xxhash.xxh3_128()
        while data:
            room = self._block_bytes - self.position % self._block_bytes
            chunk, data = data[: min(room, HASH_BYTES)], data[min(room, HASH_BYTES) :]
            whole.update(chunk)
            self._block.update(chunk)
            write_all(self._file, chunk)
            self.position += len(chunk)
            if len(chunk) == room:
                self._end_block()
        return whole.hexdigest()

    def finish(self) -> None:
        """End the last block and make the bytes durable."""
        if self.position % self._block_bytes:
            self._end_block()
        os.fsync(self._file.fileno())

    def _end_block(self) -> None:
        self.blocks.append(self._block.hexdigest())
        self._block.reset()
        self._phase("data")


def _description(piece: Piece) -> dict[str, Any]:
    return {"dtype": _code(piece), "shape": list(piece.shape)}


def _code(piece: Piece) -> str:
    if piece.values.dtype not in CODES:
        raise RegscaleError(
            piece.name,
            "has a dtype that a checkpoint cannot hold",
            found=piece.values.dtype,
            fix=f"Convert it to one of {', '.join(DTYPES)}.",
        )
    return CODES[piece.values.dtype]


def _placement(piece: Piece) -> tuple[int, str, int]:
    """Wide types first, so that every piece is aligned in the file."""
    return (-piece.values.element_size(), piece.name, piece.start)


def _header(pieces: Sequence[Piece]) -> bytes:
    """The head of a safetensors file in which each piece is a tensor `name[start:stop]`."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        end = offset + piece.values.numel() * piece.values.element_size()
        key = f"{piece.name}[{piece.start}:{piece.stop}]"
        assert key not in entries, f"{key} was given twice to one writer"
        shape = [piece.stop - piece.start]
        entries[key] = {"dtype": _code(piece), "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _write_piece(file: HashedFile, piece: Piece) -> dict[str, Any]:
    offset = file.position
    return {
        "name": piece.name,
        "start": piece.start,
        "stop": piece.stop,
        "offset": offset,
        "digest": file.write(bytes_of(piece.values.detach().reshape(-1).contiguous().cpu())),
    }


def bytes_of(flat: Tensor) -> memoryview:
    """The memory of a flat CPU tensor of any dtype."""
    return flat.view(torch.uint8).numpy().data
