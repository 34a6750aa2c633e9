"""The index beside a shard, made by reading all of it once: places, lengths and checksums.

A shard x.tar has x.tar.index; the folder's `shards.index` joins them. Both are one format.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from regscale.data import _merged
from regscale.data._merged import ABSENT, Index, Layout, Shard
from regscale.data._tar import BLOCK, Damage, Member, Read, split_name, walk
from regscale.errors import RegscaleError

END = BLOCK  # bytes at both ends of a shard that its quick hash covers: no payload
HASH_CHUNK = 1 << 24
LABELS = "shards.json"  # {"fields": {"moments.npy": {"identity": "..."}}}


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_name(shard.name + ".index")


def quick_hash(read: Read, size: int) -> str:
    """Of a file's size, beginning and end: a cheap check that it is the file that was indexed."""
    ends = read(0, min(END, size)) + read(max(size - END, 0), min(END, size))
    return f"{xxhash.xxh3_64_intdigest(ends, seed=size % 2**64):016x}"


def checksum(payload: bytes | memoryview) -> int:
    """The low half of xxh3, as an index holds it."""
    return xxhash.xxh3_64_intdigest(payload) & 0xFFFFFFFF


def index_shard(shard: Path, *, identities: Mapping[str, str] | None = None) -> Index:
    """Read a shard, and write its index beside it. Damage is recorded, not raised.

    `identities` names the encoder of each field, as `{"moments.npy": autoencoder.identity}`.
    """
    with opened(shard) as (read, size):
        made = _Builder(shard.name, read)
        for found in walk(read, size):
            if isinstance(found, Member):
                made.add(found)
            else:
                made.break_off(found)
        entry = (shard.name, size, quick_hash(read, size))
    _merged.check_fields(made.fields, shard)
    stored = _stored_labels(shard, made.digest.hexdigest())
    index = made.index(entry, {**_folder_labels(shard.parent), **stored, **(identities or {})})
    _merged.write(index_path(shard), index)
    return index


def is_current(shard: Path) -> bool:
    """Whether the index beside a shard is of this very file, without reading all of it."""
    path = index_path(shard)
    try:
        if path.stat().st_mtime_ns < shard.stat().st_mtime_ns:
            return False
        entry = _merged.read(path).shards[0]
    except (OSError, RegscaleError):
        return False
    with opened(shard) as (read, size):
        return entry.size == size and entry.quick == quick_hash(read, size)


def merge_folder(folder: Path, shards: Sequence[Path]) -> Index:
    """Join the indexes of a folder's shards into its `shards.index`."""
    return _merged.merge(folder / _merged.NAME, [index_path(shard) for shard in sorted(shards)])


@contextmanager
def opened(shard: Path) -> Iterator[tuple[Read, int]]:
    """A shard to read by position, and its size."""
    try:
        descriptor = os.open(shard, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(shard, error.strerror) from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise _unreadable(shard, "no regular file")
        yield lambda at, length: os.pread(descriptor, length, at), about.st_size
    except OSError as error:
        raise _unreadable(shard, error.strerror) from error
    finally:
        os.close(descriptor)


def _unreadable(shard: Path, found: object) -> RegscaleError:
    return RegscaleError(
        shard, "cannot be read as a shard", found=found, fix="Restore it, or take it away."
    )


def _stored_labels(shard: Path, digest: str) -> Mapping[str, str]:
    """What the last index of the same content said."""
    path = index_path(shard)
    try:
        before = _merged.read(path) if path.exists() else None
    except RegscaleError:
        before = None
    return before.identities if before and before.shards[0].digest == digest else {}


def _folder_labels(folder: Path) -> dict[str, str]:
    """What `shards.json` says of a folder's fields."""
    path = folder / LABELS
    if not path.exists():
        return {}
    try:
        fields = json.loads(path.read_text())["fields"]
        return {name: str(about["identity"]) for name, about in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegscaleError(
            path,
            "does not say which encoder made which field",
            found=repr(error),
            fix='Write {"fields": {"moments.npy": {"identity": "..."}}}.',
        ) from error


@dataclass(slots=True)
class _Sample:
    key: str
    head: int
    cells: dict[int, tuple[int, int]] = field(default_factory=dict)  # field -> length, checksum
    layout: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0  # of the last payload, padded


class _Builder:
    """Members in their order to samples: neighbours of one key."""

    def __init__(self, name: str, read: Read) -> None:
        self.name, self.read = name, read
        self.fields: dict[str, int] = {}
        self.samples: list[_Sample] = []
        self.keys: set[str] = set()
        self.repeated: set[str] = set()
        self.damage: list[Damage] = []
        self.digest = xxhash.xxh3_128()
        self.open: _Sample | None = None
        self.has_gaps = False  # some members are lost

    def add(self, member: Member) -> None:
        named = split_name(member.name)
        if named is None:  # readme files and the like
            return
        key, name = named
        sample = self._sample(key, member)
        if sample is None:
            return
        number = self.fields.setdefault(name, len(self.fields))
        if number in sample.cells or member.size >= ABSENT:
            what = "is too large" if member.size >= ABSENT else "is there twice"
            self.damage.append(Damage(member.head, f"field '{name}' {what}", key))
            return
        hashed = self._hash(member)
        self.digest.update(f"{key}\0{name}\0{member.size}\0{hashed}\n".encode())
        sample.cells[number] = (member.size, hashed & 0xFFFFFFFF)
        sample.layout.append((number, (member.start - sample.end) // BLOCK))
        sample.end = member.start + -(-member.size // BLOCK) * BLOCK

    def break_off(self, damage: Damage) -> None:
        last = self.samples[-1].key if self.samples else ""
        self.has_gaps = self.has_gaps or not damage.sample
        if damage.sample or not last:
            self.damage.append(damage)
        else:
            self.damage.append(Damage(damage.byte, f"{damage.what} (after sample {last})", last))

    def _sample(self, key: str, member: Member) -> _Sample | None:
        """The sample that a member belongs to; None for one whose key was there before."""
        if self.open is not None and self.open.key == key:
            return self.open
        if key in self.keys:
            if key not in self.repeated:
                self.damage.append(Damage(member.head, f"key {key!r} is there twice", key))
            self.repeated.add(key)
            return None
        self.keys.add(key)
        self.open = _Sample(key, member.head, end=member.head)
        self.samples.append(self.open)
        return self.open

    def _hash(self, member: Member) -> int:
        if member.size <= HASH_CHUNK:
            return xxhash.xxh3_64_intdigest(self.read(member.start, member.size))
        state, end = xxhash.xxh3_64(), member.start + member.size
        for at in range(member.start, end, HASH_CHUNK):
            state.update(self.read(at, min(HASH_CHUNK, end - at)))
        return state.intdigest()

    def index(self, entry: tuple[str, int, str], labels: Mapping[str, str]) -> Index:
        self._note_incomplete()
        samples = [sample for sample in self.samples if sample.cells]
        N, F = len(samples), len(self.fields)
        rows = np.zeros((N, 2), dtype=np.uint32)
        cells = np.full((N, F, 2), ABSENT, dtype=np.uint32)
        layouts: dict[Layout, int] = {}
        for row, sample in enumerate(samples):
            rows[row] = sample.head // BLOCK, layouts.setdefault(tuple(sample.layout), len(layouts))
            for number, cell in sample.cells.items():
                cells[row, number] = cell
        if not samples and not self.damage:
            self.damage.append(Damage(0, "holds no samples"))
        return Index(
            where=self.name,
            shards=(Shard(*entry, self.digest.hexdigest(), N),),
            fields=tuple(self.fields),
            layouts=tuple(layouts),
            identities={name: labels[name] for name in self.fields if name in labels},
            damage=tuple((self.name, damage) for damage in self.damage),
            counts=tuple((cells[:, :, 0] != ABSENT).sum(axis=0).tolist()),
            rows=rows,
            cells=cells,
        )

    def _note_incomplete(self) -> None:
        """Where headers were lost, a sample without a field that all others have is a victim."""
        if not self.has_gaps or len(self.samples) < 2:
            return
        counts = {f: sum(n in s.cells for s in self.samples) for f, n in self.fields.items()}
        common = sorted(f for f, count in counts.items() if 2 * count >= len(self.samples))
        for sample in self.samples:
            lacking = [f for f in common if self.fields[f] not in sample.cells]
            if lacking:
                what = f"has lost {', '.join(repr(f) for f in lacking)}"
                self.damage.append(Damage(sample.head, what, sample.key))
