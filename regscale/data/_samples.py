"""One sample of a shard: which bytes to read, what they must be, and what damage means."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from regscale.data._fields import members
from regscale.data._index import checksum
from regscale.data._merged import ABSENT, Cell
from regscale.data._reader import Reader, Span, changed
from regscale.data._select import Place, Selection
from regscale.data._tar import member_at, split_name
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

GAP = 1 << 16  # bytes between two fields that are read along rather than left out


class Wanted(NamedTuple):
    """Where the wanted fields of a sample lie; without one, its first headers are read."""

    sample: int
    place: int
    cells: list[Cell]
    spans: list[Span]

    def cell(self, field: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.field == field), None)


class Damaged(Exception):
    """A sample that cannot be used as it lies on the disk."""

    def __init__(self, place: Place, cell: Cell | None, key: str, what: str) -> None:
        self.place, self.key, self.what = place, key, what
        self.byte = f" at byte {cell.start:,}" if cell else ""
        super().__init__(f"{place.url}: sample {key}{self.byte}: {what}")

    def as_fault(self, found: str) -> RegscaleError:
        return RegscaleError(
            self.place.url,
            f"sample {self.key}{self.byte} is damaged: {self.what}",
            found=found,
            fix="Restore the shard and index it, or set data.policy=skip and data.skip_share.",
        )


def plan(selection: Selection, index: int, fields: Collection[str]) -> Wanted:
    """What to read for a sample: fields that lie close together in one piece."""
    place, row = selection.locate(index)
    every = selection.places[place].index.cells_of(row)
    cells = [cell for cell in every if cell.field in fields]
    if not cells:
        return Wanted(index, place, cells, [_headers(place, every)])
    spans: list[Span] = []
    begin = end = cells[0].head
    for _, head, start, length, _ in cells:
        if head - end > GAP:
            spans.append(Span(place, begin, end - begin))
            begin = head
        end = start + length
    spans.append(Span(place, begin, end - begin))
    return Wanted(index, place, cells, spans)


def _headers(place: int, cells: Sequence[Cell]) -> Span:
    """The first headers of a sample, which tell its key."""
    return Span(place, cells[0].head, cells[0].start - cells[0].head)


def unpack(
    place: Place, wanted: Wanted, parts: Sequence[memoryview], *, verify: bool
) -> tuple[str, dict[str, memoryview]]:
    """(key, payloads by field) of what was read."""
    payloads: dict[str, memoryview] = {}
    number, key = 0, "" if wanted.cells else _only_key(place, bytes(parts[0]))
    _, begin, length = wanted.spans[0]
    for cell in wanted.cells:
        while cell.head >= begin + length:
            number += 1
            _, begin, length = wanted.spans[number]
        at = cell.start - begin
        payload = parts[number][at : at + cell.length]
        if not key or not verify:
            key = _key(place, cell, bytes(parts[number][cell.head - begin : at]))
        if verify and checksum(payload) != cell.checksum:
            raise Damaged(place, cell, key, f"field '{cell.field}' differs from its checksum")
        payloads[cell.field] = payload
    return key, payloads


def _key(place: Place, cell: Cell, headers: bytes) -> str:
    """The key that the headers before a payload give; they must be those that were indexed."""
    member = member_at(headers)
    parts = split_name(member[0]) if member else None
    if member is None or parts is None or (parts[1], member[1]) != (cell.field, cell.length):
        there = f"{member[0]!r} of {member[1]:,} bytes" if member else "no header"
        indexed = f"indexed '{cell.field}' of {cell.length:,} bytes"
        raise changed(place, f"{there} at byte {cell.head:,}, {indexed}")
    return parts[0]


def _only_key(place: Place, headers: bytes) -> str:
    member = member_at(headers)
    parts = split_name(member[0]) if member else None
    if parts is None:
        raise changed(place, "no header where a sample began")
    return parts[0]


def judge(selection: Selection, names: Sequence[str], reader: Reader, *, allowed: float) -> None:
    """Refuse shards of which the index knows more damage than the allowed share of samples."""
    damage = [fault for place in selection.places for fault in _known(place)]
    lacking = [
        (number, row, name)
        for number, place in enumerate(selection.places)
        for name in names
        for row in _lacking(place, name)
    ]
    if not damage and not lacking:
        return
    count = len(damage) + len(lacking)
    spoken = damage[:20]
    for number, row, name in lacking[: 20 - len(spoken)]:
        spoken.append(_spoken(selection.places[number], number, row, name, reader))
    if count > allowed * selection.num_samples:
        raise RegscaleError(
            *spoken[0],
            found=f"{count:,} damaged places in {selection.num_samples:,} samples",
            fix="Restore the shards and index them again, leave the field out, or set "
            "data.policy=skip and data.skip_share.",
        )
    for where, what in spoken:
        log.warning("%s: %s", where, what)
    log.warning("%s damaged places are known in all; data.policy=skip goes on", f"{count:,}")


def _known(place: Place) -> list[tuple[str, str]]:
    found = []
    for name, damage in place.index.damage:
        if name == place.shard.name:
            sample = f", sample {damage.sample}" if damage.sample else ""
            found.append((place.url, f"byte {damage.byte:,}{sample}: {damage.what}"))
    return found


def _lacking(place: Place, name: str) -> list[int]:
    """Rows of samples without any of the members that may hold a wanted field."""
    index, wanted = place.index, members(name)
    columns = [number for number, field in enumerate(index.fields) if field in wanted]
    if any(index.counts[number] == len(index.rows) for number in columns):
        return []
    rows = slice(place.first, place.first + place.shard.num_samples)
    lacks = ~(index.cells[rows][:, columns, 0] != ABSENT).any(axis=1)
    return (np.flatnonzero(lacks) + place.first).tolist()


def _spoken(place: Place, number: int, row: int, name: str, reader: Reader) -> tuple[str, str]:
    cells = place.index.cells_of(row)
    key = _only_key(place, bytes(reader.fetch([_headers(number, cells)])[0]))
    has = ", ".join(cell.field for cell in cells)
    lacks = " or ".join(f"'{member}'" for member in members(name))
    return place.url, f"sample {key} has no {lacks}, which data.fields names; it has {has}"
