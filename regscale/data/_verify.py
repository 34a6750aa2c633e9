"""Everything that can be wrong with a shard, by reading all of it against its index."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from regscale.data import _fields, _merged
from regscale.data._images import Unusable, decode
from regscale.data._index import checksum, index_path, opened, quick_hash
from regscale.data._merged import Cell, Index
from regscale.data._tar import Member, Read, member_at, split_name, walk
from regscale.errors import RegscaleError


class Finding(NamedTuple):
    """A damaged place."""

    shard: str
    byte: int
    sample: str
    what: str


def verify_shard(shard: Path) -> tuple[int, list[Finding]]:
    """(samples read, damaged places) of a shard that has an index."""
    try:
        index = _merged.read(index_path(shard))
    except RegscaleError as error:
        return 0, [Finding(str(shard), 0, "", f"{error.what}; found {error.found}")]
    with opened(shard) as (read, size):
        found = [
            Finding(str(shard), damage.byte, damage.sample, damage.what)
            for damage in walk(read, size)
            if not isinstance(damage, Member)
        ]
        known = {(f.byte, f.what) for f in found}
        for _, damage in index.damage:
            if not any(damage.byte == b and damage.what.startswith(w) for b, w in known):
                found.append(Finding(str(shard), damage.byte, damage.sample, damage.what))
        entry = index.shards[0]
        if (size, quick_hash(read, size)) != (entry.size, entry.quick):
            what = f"has changed since it was indexed: {size:,} bytes, indexed {entry.size:,}"
            found.append(Finding(str(shard), 0, "", what))
        for row in range(len(index.rows)):
            found += _sample(shard, index, row, read)
    return len(index.rows), found


def _sample(shard: Path, index: Index, row: int, read: Read) -> list[Finding]:
    found, key = [], ""
    for cell in index.cells_of(row):
        member = member_at(read(cell.head, cell.start - cell.head))
        parts = split_name(member[0]) if member else None
        key = parts[0] if parts else key
        payload = read(cell.start, cell.length)
        if parts is None or parts[1] != cell.field or len(payload) < cell.length:
            what = f"field '{cell.field}' is not where the index says"
        elif checksum(payload) != cell.checksum:
            what = f"field '{cell.field}' differs from its checksum"
        else:
            what = _undecodable(cell, payload)
        if what:
            found.append(Finding(str(shard), cell.start, key, what))
    return found


def _undecodable(cell: Cell, payload: bytes) -> str:
    """Why a field that is as it was packed cannot be used; empty for one that can."""
    try:
        if cell.field in _fields.PICTURES:
            decode(payload, 1, crop="centre", chance=(0.0, 0.0, 0.0))
        elif cell.field.endswith(".npy"):
            _fields.array(memoryview(payload))
        elif cell.field == "cls":
            _fields.label({"cls": memoryview(payload)})
        elif cell.field == "json":
            _fields.json_object(memoryview(payload))
        elif cell.field == "txt":
            payload.decode()
    except UnicodeDecodeError:
        return "field 'txt' is no text in UTF-8"
    except Unusable as error:
        return f"field '{cell.field}' is {error}"
    return ""
