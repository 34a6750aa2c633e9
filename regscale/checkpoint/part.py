"""What one writer saves: a safetensors file of pieces, and an index with their digests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
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
    check_same,
    data_name,
    index_name,
    no_phase,
    seal,
)
from regscale.errors import RegscaleError

UNSAVED = "this checkpoint could not be saved, older ones are as they were"
HASH_BYTES = 2**20  # stays in the cache between two hashes and the write

Fetch = Callable[[Piece], Tensor]


def own_values(piece: Piece) -> Tensor:
    """The default of `fetch`."""
    return piece.values


def write_part(
    folder: Path,
    writer: int,
    pieces: Iterable[Piece],
    *,
    block_bytes: int = BLOCK_BYTES,
    fetch: Fetch = own_values,
    phase: Phase = no_phase,
) -> str:
    """Write the file of one writer and its index; return the index's digest, for `commit`.

    Writers are numbered from 0 without gaps. Ranges that follow one another become one piece of
    the file. `fetch` gives the values of a piece when their turn comes, so they need not be here
    before: until then, a tensor on the meta device says their type. Safe to call from a thread as
    long as the pieces do not change. Where it fails, the caller has to `abandon` the folder.
    """
    given = list(pieces)
    tensors = _describe(given, folder)
    stored = _runs(sorted((p for p in given if p.start < p.stop), key=placement))
    path = folder / data_name(writer)
    with reported(path, UNSAVED):
        with open(path, "xb", buffering=0) as raw:
            file = HashedFile(raw, block_bytes, phase)
            header = _header(stored)
            head = {"size": len(header), "digest": file.write([memoryview(header)])}
            rows = [_write_run(file, run, fetch) for run in stored]
            file.finish()
        phase("index")
        index, index_digest = seal(
            {
                "header": head,
                "size": file.position,
                "block_bytes": block_bytes,
                "blocks": file.blocks,
                "pieces": rows,
                "tensors": tensors,
            }
        )
        write_file(folder / index_name(writer), index)
    phase("part")
    return index_digest


def _describe(pieces: Iterable[Piece], folder: Path) -> dict[str, dict[str, Any]]:
    tensors: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        description = {"dtype": _code(piece), "shape": list(piece.shape)}
        check_same(folder, piece.name, tensors.setdefault(piece.name, description), description)
    return tensors


class HashedFile:
    """Writes bytes once, and on the way hashes them per call and per block."""

    def __init__(self, file: BinaryIO, block_bytes: int, phase: Phase) -> None:
        self.position = 0
        self.blocks: list[str] = []
        self._file, self._block_bytes, self._phase = file, block_bytes, phase
        self._block = xxhash.xxh3_128()

    def write(self, parts: Iterable[memoryview]) -> str:
        """Write all parts, one after another, and return their common digest."""
        whole = xxhash.xxh3_128()
        for part in parts:
            data = part
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


def _code(piece: Piece) -> str:
    if piece.values.dtype not in CODES:
        raise RegscaleError(
            piece.name,
            "has a dtype that a checkpoint cannot hold",
            found=piece.values.dtype,
            fix=f"Convert it to one of {', '.join(DTYPES)}.",
        )
    return CODES[piece.values.dtype]


def placement(piece: Piece) -> tuple[int, str, int]:
    """Wide types first, so that every piece is aligned in the file."""
    return (-piece.values.element_size(), piece.name, piece.start)


def _runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces in their order, those together that continue one another."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        last = runs[-1][-1] if runs else None
        if last is not None and (last.name, last.stop) == (piece.name, piece.start):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _header(runs: Sequence[Sequence[Piece]]) -> bytes:
    """The head of a safetensors file in which each run is a tensor `name[start:stop]`."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for run in runs:
        first, stop = run[0], run[-1].stop
        shape = [stop - first.start]
        end = offset + shape[0] * first.values.element_size()
        key = f"{first.name}[{first.start}:{stop}]"
        assert key not in entries, f"{key} was given twice to one writer"
        entries[key] = {"dtype": _code(first), "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _write_run(file: HashedFile, run: Sequence[Piece], fetch: Fetch) -> dict[str, Any]:
    offset = file.position
    values = (fetch(piece).detach().reshape(-1).contiguous().cpu() for piece in run)
    return {
        "name": run[0].name,
        "start": run[0].start,
        "stop": run[-1].stop,
        "offset": offset,
        "digest": file.write(bytes_of(each) for each in values),
    }


def bytes_of(flat: Tensor) -> memoryview:
    """The memory of a flat CPU tensor of any dtype."""
    return flat.view(torch.uint8).numpy().data
