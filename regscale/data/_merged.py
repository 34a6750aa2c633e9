"""The index of a data set: one memory-mapped file, 8 bytes a sample and 8 bytes a field.

It is a safetensors file. `rows` (N, 2) uint32 holds of each sample the block of its first header in
its shard and the number of its layout; `cells` (N, F, 2) uint32 of each field the payload's length
(`ABSENT` without one) and the low half of its xxh3. A layout lists fields in their order, each with
the blocks from the last payload to its own (headers): offsets are sums, and keys stay in the tar.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash

from regscale.data._tar import BLOCK, Damage
from regscale.errors import RegscaleError
from regscale.files import replacing

VERSION = 1
ABSENT = 2**32 - 1
MAX_FIELDS = 64
NAME = "shards.index"  # of a folder's merged index

Layout = tuple[tuple[int, int], ...]  # (field, blocks between the last payload and this one)
Array = np.ndarray[Any, np.dtype[Any]]


class Shard(NamedTuple):
    """A shard as it was when it was indexed."""

    name: str
    size: int
    quick: str  # hash of its size, beginning and end, without the time of change
    digest: str  # hash of the names, lengths and checksums of all members
    num_samples: int


class Cell(NamedTuple):
    """A field of a sample: its headers begin at `head`, its payload at `start`."""

    field: str
    head: int
    start: int
    length: int
    checksum: int  # the low half of the payload's xxh3


@dataclass(frozen=True, slots=True)
class Index:
    """Shards, one after the other, and their samples."""

    where: str
    shards: tuple[Shard, ...]
    fields: tuple[str, ...]
    layouts: tuple[Layout, ...]
    identities: Mapping[str, str]  # of the encoders, by field
    damage: tuple[tuple[str, Damage], ...]  # (shard, damage)
    counts: tuple[int, ...]  # samples that have each field
    rows: Array  # (N, 2) uint32
    cells: Array  # (N, F, 2) uint32

    def cells_of(self, row: int) -> list[Cell]:
        """The fields of a sample in the order of their bytes."""
        at, layout = self.rows[row].tolist()  # in blocks
        lengths, names = self.cells[row].tolist(), self.fields
        found = []
        for field, gap in self.layouts[layout]:
            length, checksum = lengths[field]
            start = at + gap
            found.append(Cell(names[field], at * BLOCK, start * BLOCK, length, checksum))
            at = start + -(-length // BLOCK)
        return found


def fingerprint(shards: Iterable[Shard]) -> str:
    """Of the content of all members and the order of the shards."""
    text = "\n".join(f"{shard.name} {shard.digest}" for shard in shards)
    return xxhash.xxh3_128_hexdigest(text.encode())


def write(path: Path, index: Index) -> None:
    """Make the file, whole or not at all."""
    with replacing(path) as file:
        _write_header(file, index, len(index.rows))
        file.write(np.ascontiguousarray(index.rows, dtype="<u4").tobytes())
        file.write(np.ascontiguousarray(index.cells, dtype="<u4").tobytes())


def merge(path: Path, parts: Sequence[Path]) -> Index:
    """One file of the indexes of many shards, in the order given; returns the index of it."""
    heads = [_read_head(part) for part in parts]
    fields = sorted({field for head, _ in heads for field in head["fields"]})
    check_fields(fields, path)
    layouts: dict[Layout, int] = {}
    maps = []  # of each part: its columns and its layouts in the whole
    for head, _ in heads:
        columns = [fields.index(field) for field in head["fields"]]
        moved = [tuple((columns[f], gap) for f, gap in layout) for layout in head["layouts"]]
        maps.append((columns, [layouts.setdefault(m, len(layouts)) for m in moved]))
    counts = [0] * len(fields)
    for (head, _), (columns, _) in zip(heads, maps, strict=True):
        for column, count in zip(columns, head["counts"], strict=True):
            counts[column] += count
    shards = tuple(Shard(*shard) for head, _ in heads for shard in head["shards"])
    empty = np.zeros((0, 2), dtype=np.uint32)
    whole = Index(
        str(path), shards, tuple(fields), tuple(layouts), _identities(heads, parts),
        tuple((s, Damage(*d)) for head, _ in heads for s, d in head["damage"]),
        tuple(counts), empty, empty,
    )  # fmt: skip
    _write_parts(path, whole, parts, maps)
    return read(path)


def _write_parts(
    path: Path, whole: Index, parts: Sequence[Path], maps: list[tuple[list[int], list[int]]]
) -> None:
    """Part by part, so that the whole need not fit in memory."""
    num_samples = sum(shard.num_samples for shard in whole.shards)
    with replacing(path) as file:
        at_rows = _write_header(file, whole, num_samples)
        at_cells = at_rows + 8 * num_samples
        for part, (columns, numbers) in zip(parts, maps, strict=True):
            index = read(part)
            rows = np.array(index.rows)
            if numbers:
                rows[:, 1] = np.array(numbers, dtype=np.uint32)[rows[:, 1]]
            cells = np.full((len(rows), len(whole.fields), 2), ABSENT, dtype="<u4")
            cells[:, columns] = index.cells
            file.seek(at_rows)
            at_rows += file.write(rows.astype("<u4").tobytes())
            file.seek(at_cells)
            at_cells += file.write(cells.tobytes())


def read(path: Path) -> Index:
    """The file, memory-mapped: every process of a machine shares its pages."""
    head, offset = _read_head(path)
    shards = tuple(Shard(*shard) for shard in head["shards"])
    N, F = sum(shard.num_samples for shard in shards), len(head["fields"])
    _check_size(path, offset + 8 * N + 8 * N * F)
    return Index(
        where=str(path),
        shards=shards,
        fields=tuple(head["fields"]),
        layouts=tuple(tuple((f, gap) for f, gap in layout) for layout in head["layouts"]),
        identities=head["identities"],
        damage=tuple((shard, Damage(*damage)) for shard, damage in head["damage"]),
        counts=tuple(head["counts"]),
        rows=_mapped(path, offset, (N, 2)),
        cells=_mapped(path, offset + 8 * N, (N, F, 2)),
    )


def _mapped(path: Path, offset: int, shape: tuple[int, ...]) -> Array:
    if 0 in shape:
        return np.zeros(shape, dtype=np.uint32)
    mapped = np.memmap(path, dtype="<u4", mode="r", offset=offset, shape=shape)
    return mapped.view(np.ndarray)  # whose indexing is faster


def _identities(heads: list[tuple[dict[str, Any], int]], parts: Sequence[Path]) -> dict[str, str]:
    """Of each field the one encoder that made it in every shard that has it."""
    found: dict[str, tuple[str, Path]] = {}
    for (head, _), part in zip(heads, parts, strict=True):
        for field in head["fields"]:
            identity = head["identities"].get(field, "")
            before, where = found.setdefault(field, (identity, part))
            if before != identity:
                raise RegscaleError(
                    part,
                    f"holds '{field}' of another encoder than {where.name}",
                    found=f"{identity or 'no identity'}, there {before or 'no identity'}",
                    fix="Encode all shards of a folder with one encoder.",
                )
    return {field: identity for field, (identity, _) in found.items() if identity}


def check_fields(fields: Iterable[str], where: object) -> None:
    """Refuse what can only come from dots in keys."""
    fields = list(fields)
    if len(fields) > MAX_FIELDS:
        raise RegscaleError(
            where,
            f"holds more than {MAX_FIELDS} fields",
            found=", ".join(fields[:8]) + ", ...",
            fix="A key holds no dot: the field begins at the first dot of a name. Pack it again.",
        )


def _write_header(file: BinaryIO, index: Index, num_samples: int) -> int:
    """Begin a safetensors file; returns where its arrays begin."""
    N, F = num_samples, len(index.fields)
    about = {
        "version": VERSION,
        "shards": index.shards,
        "fields": index.fields,
        "layouts": index.layouts,
        "identities": dict(index.identities),
        "damage": index.damage,
        "counts": index.counts,
    }
    header = {
        "__metadata__": {"regscale": json.dumps(about, separators=(",", ":"))},
        "rows": {"dtype": "U32", "shape": [N, 2], "data_offsets": [0, 8 * N]},
        "cells": {"dtype": "U32", "shape": [N, F, 2], "data_offsets": [8 * N, 8 * N + 8 * N * F]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    return 8 + len(text)


def _read_head(path: Path) -> tuple[dict[str, Any], int]:
    """What an index says of itself, and where its arrays begin."""
    try:
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(min(length, 1 << 30)))
        about: dict[str, Any] = json.loads(header["__metadata__"]["regscale"])
        version = about["version"]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise _unreadable(path, error) from error
    if version != VERSION:
        raise _unreadable(path, f"version {version}, not {VERSION}")
    return about, 8 + length


def _check_size(path: Path, size: int) -> None:
    if (there := path.stat().st_size) != size:
        raise _unreadable(path, f"{there:,} bytes, not {size:,}")


def _unreadable(path: Path, found: object) -> RegscaleError:
    return RegscaleError(
        path,
        "cannot be read as an index of shards",
        found=found,
        fix=f"Make it again: python -m regscale.prepare index {path.parent}",
    )
