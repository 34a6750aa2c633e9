"""Members of a tar, strictly: where each payload lies, and every place where the tar is broken.

Reads ustar, GNU and pax headers by position. What a lenient reader passes over in silence (a cut on
a boundary, a header of zeros) is reported, and the walk goes on at the next header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
CHUNK = 1 << 20
ZEROS = bytes(BLOCK)

_FILES = (b"0", b"\0", b"7")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"x": "an extended header of more than 1 MiB",
}
_MAGICS = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"PK": "a zip file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8": "a JPEG image",
    b"\x93NUMPY": "a NumPy array",
}

Read = Callable[[int, int], bytes]  # (byte, length): fewer bytes only at the end of the file


class Member(NamedTuple):
    """A file of the archive: its headers begin at `head`, its payload at `start`."""

    name: str
    head: int
    start: int
    size: int


class Damage(NamedTuple):
    """A place that is broken; `sample` is the sample concerned, or the last one before it."""

    byte: int
    what: str
    sample: str = ""


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes


def walk(read: Read, size: int) -> Iterator[Member | Damage]:
    """The members of an archive of `size` bytes in their order, and its damage."""
    at, head = 0, 0
    extended: dict[str, str] = {}
    shared: dict[str, str] = {}
    if size == 0:
        yield Damage(0, "is empty")
        return
    while True:
        block = read(at, BLOCK)
        header = _parse(block)
        if header is None:
            damage, onward = _no_header(read, at, size, block)
            if damage is not None:
                yield damage
            if onward is None:
                return
            at = head = onward
            extended = {}
            continue
        start = at + BLOCK
        name = extended.get("path") or shared.get("path") or header.name
        length = header.size if header.kind in b"xgLK" else _size(extended, header.size)
        at = start + -(-length // BLOCK) * BLOCK
        if start + length > size:
            yield Damage(start, _cut(name, max(size - start, 0), length), _key(name))
            return
        if header.kind in (b"x", b"g", b"L", b"K") and length <= CHUNK:
            target = shared if header.kind == b"g" else extended
            target.update(_extension(header.kind, read(start, length)))
            continue
        yield from _member(name, header.kind, Member(name, head, start, length))
        head, extended = at, {}


def _member(name: str, kind: bytes, member: Member) -> Iterator[Member | Damage]:
    if kind == b"5" or (kind in _FILES and name.endswith("/")):
        return
    if kind not in _FILES:
        what = _KINDS.get(kind, f"of type {kind!r}")
        yield Damage(member.start - BLOCK, f"member {name!r} is {what}, not a file", _key(name))
    elif name.startswith("/") or ".." in name.split("/") or "\\" in name:
        yield Damage(member.start - BLOCK, f"member {name!r} leads outside of the archive")
    else:
        yield member


def split_name(name: str) -> tuple[str, str] | None:
    """(key, field) of a member by the rule of WebDataset: the field begins at the first dot of the
    base name and is in lower case. None for names that belong to no sample."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, field = base.partition(".")
    if not stem or not field or (stem.startswith("__") and stem.endswith("__")):
        return None
    return (f"{folder}/{stem}" if folder else stem), field.lower()


def member_at(block: bytes) -> tuple[str, int] | None:
    """(name, size) that headers at the end of `block` give the member whose payload follows."""
    if len(block) == BLOCK:  # name and size are compared with an index: no checksum is needed
        header = _read(block)
        return (header.name, header.size) if header and header.kind in _FILES else None
    for item in walk(lambda at, length: block[at : at + length], 1 << 62):
        if isinstance(item, Member) and item.start == len(block):
            return item.name, item.size
    return None


def _key(name: str) -> str:
    parts = split_name(name)
    return parts[0] if parts else ""


def _parse(block: bytes) -> _Header | None:
    """The header in a block, or None where its checksum is wrong."""
    if len(block) < BLOCK:
        return None
    try:
        stated = int(block[148:156].split(b"\0", 1)[0].strip() or b"-1", 8)
    except ValueError:
        return None
    return _read(block) if stated == sum(block) - sum(block[148:156]) + 256 else None


def _read(block: bytes) -> _Header | None:
    """The header in a block, whatever its checksum; None where the size is no number."""
    try:
        size = _number(block[124:136])
    except ValueError:
        return None
    if size < 0:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return _Header(name.decode("utf-8", "backslashreplace"), size, block[156:157])


def _number(field: bytes) -> int:
    """Octal, or base 256 where the first bit is set (GNU)."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _extension(kind: bytes, payload: bytes) -> dict[str, str]:
    """What an extended header (pax) or a long name (GNU) says of the next member."""
    if kind == b"L":
        return {"path": payload.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")}
    found, at = {}, 0
    while kind != b"K" and (match := re.compile(rb"(\d{1,19}) ([^=]+)=").match(payload, at)):
        end = at + int(match[1])
        value = payload[match.end() : end - 1]
        found[match[2].decode("utf-8", "replace")] = value.decode("utf-8", "backslashreplace")
        at = max(end, match.end())
    return found


def _size(extended: dict[str, str], size: int) -> int:
    stated = extended.get("size", "")
    return int(stated) if re.fullmatch("[0-9]{1,19}", stated) else size


def _cut(name: str, there: int, length: int) -> str:
    return f"is cut inside member {name!r}: {there:,} of its {length:,} bytes are there"


def _no_header(read: Read, at: int, size: int, block: bytes) -> tuple[Damage | None, int | None]:
    """What is wrong where no header stands, and where the next one does."""
    if len(block) < BLOCK:
        what = "inside a header" if block else "on the boundary of a member"
        return Damage(at, f"is cut {what}: the mark of the archive's end is missing"), None
    if block != ZEROS:
        onward = _next_header(read, at + BLOCK)
        if at == 0 and onward is None:
            kind = next((k for m, k in _MAGICS.items() if block.startswith(m)), "something else")
            return Damage(0, f"is no tar archive but {kind}"), None
        return Damage(at, "has a damaged header"), onward
    data = _next_data(read, at + BLOCK)
    if data is None:
        cut = None if size - at >= 2 * BLOCK else "is cut inside the mark of the archive's end"
        return (Damage(at, cut) if cut else None), None
    what = f"has a header of zeros, with data after it from byte {data:,}"
    return Damage(at, what), _next_header(read, at + BLOCK)


def _next_data(read: Read, at: int) -> int | None:
    while chunk := read(at, CHUNK):
        if chunk.count(0) != len(chunk):
            return at + len(chunk) - len(chunk.lstrip(b"\0"))
        at += len(chunk)
    return None


def _next_header(read: Read, at: int) -> int | None:
    """The next block that is a header beyond doubt: the magic word and a right checksum."""
    while chunk := read(at, CHUNK):
        for place in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[place : place + BLOCK]
            if block[257:262] == b"ustar" and _parse(block) is not None:
                return at + place
        at += len(chunk)
    return None
