"""Pictures inside tars: ImageNet's tar of tars, a folder of class tars, WebDataset shards.

Members are read by position, so nothing is unpacked and any order is as good as another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from regscale.data import _fields
from regscale.data._images import Unusable, is_picture
from regscale.data._index import opened
from regscale.data._tar import Damage, Member, Read, split_name, walk
from regscale.errors import RegscaleError
from regscale.prepare._sources import Entry, Listing, Source, of_classes

LABELS = ("cls", "json")


def open_tars(paths: tuple[Path, ...]) -> Source:
    """By the members of the first: a sample with a label, tars, or the pictures of one class."""
    with opened(paths[0]) as (read, size):
        names = []
        for found in walk(read, size):
            if isinstance(found, Member):
                names.append(found.name)
            if len(names) == 64:
                break
    parts = [split_name(name) for name in names]
    if any(part and part[1] in LABELS for part in parts):
        return Shards(paths)
    nested = any(name.endswith(".tar") for name in names)
    if nested or (len(paths) > 1 and any(map(is_picture, names))):
        return ClassTars(paths)
    raise RegscaleError(
        paths[0],
        "holds no pictures with classes",
        found=", ".join(names[:3]) or "no members",
        fix="Give ILSVRC2012_img_train.tar, tars of one class each, or shards with cls or json.",
    )


def pread(path: Path, start: int, size: int) -> bytes:
    """Bytes of a file that stays open in this process."""
    payload = os.pread(_descriptor(path), size, start)
    if len(payload) < size:
        raise Unusable(f"cut: {len(payload):,} of {size:,} bytes of {path.name} are there")
    return payload


@cache
def _descriptor(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


@dataclass(frozen=True, slots=True)
class ClassTars:
    """Tars named by their class, alone or inside other tars as ImageNet is distributed."""

    paths: tuple[Path, ...]

    def listing(self) -> Listing:
        names: list[tuple[str, list[Any]]] = []
        damage: list[tuple[str, str]] = []
        for number, path in enumerate(self.paths):
            with opened(path) as (read, size):
                for found in _nested(read, 0, size, path.stem):
                    if isinstance(found, Damage):
                        damage.append((str(path), f"byte {found.byte:,}: {found.what}"))
                    else:
                        names.append((found.name, [number, found.start, found.size]))
        return of_classes(names)._replace(damage=tuple(damage))

    def read(self, place: list[Any]) -> bytes:
        return pread(self.paths[place[0]], place[1], place[2])


def _nested(read: Read, start: int, size: int, name: str) -> Iterator[Member | Damage]:
    """Pictures as class/file with places in the outer file, and damage on any level."""

    def inner(at: int, length: int) -> bytes:
        return read(start + at, max(0, min(length, size - at)))

    for found in walk(inner, size):
        if isinstance(found, Damage):
            yield found._replace(byte=start + found.byte, what=f"{name}.tar {found.what}")
            continue
        base = found.name.rpartition("/")[2]
        if base.endswith(".tar"):
            yield from _nested(read, start + found.start, found.size, base.removesuffix(".tar"))
        elif is_picture(base):
            yield Member(f"{name}/{base}", start + found.head, start + found.start, found.size)


@dataclass(frozen=True, slots=True)
class Shards:
    """WebDataset shards with a picture and a class number (cls or json) in each sample."""

    paths: tuple[Path, ...]

    def listing(self) -> Listing:
        found: list[tuple[str, str, int, list[Any]]] = []
        damage: list[tuple[str, str]] = []
        for number, path in enumerate(self.paths):
            with opened(path) as (read, size):
                for key, members in samples(read, size, path, damage):
                    made = _labelled(read, members)
                    if isinstance(made, str):
                        damage.append((f"{path.name}/{key}", made))
                    else:
                        label, picture = made
                        found.append((path.stem, key, label, [number, picture.start, picture.size]))
        unique = len({key for _, key, _, _ in found}) == len(found)
        entries = [
            Entry(key if unique else f"{stem}/{key}", label, place)
            for stem, key, label, place in found
        ]
        return Listing((), sorted(entries), tuple(damage))

    def read(self, place: list[Any]) -> bytes:
        return pread(self.paths[place[0]], place[1], place[2])


def samples(
    read: Read, size: int, path: Path, damage: list[tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, members by field) of a shard, neighbours of one key; damage is added to the list."""
    last, members = "", dict[str, Member]()
    for found in walk(read, size):
        if isinstance(found, Damage):
            damage.append((f"{path}", f"byte {found.byte:,}: {found.what}"))
            continue
        named = split_name(found.name)
        if named is None:
            continue
        if named[0] != last and members:
            yield last, members
            members = {}
        last = named[0]
        members[named[1]] = found
    if members:
        yield last, members


def _labelled(read: Read, members: dict[str, Member]) -> tuple[int, Member] | str:
    """(label, picture) of a sample, or what is wrong with it."""
    picture = next((members[name] for name in _fields.PICTURES if name in members), None)
    name = next((name for name in LABELS if name in members), None)
    if picture is None or name is None:
        lacking = "picture" if picture is None else "label"
        return f"has no {lacking}; it has {', '.join(sorted(members))}"
    payload = memoryview(read(members[name].start, members[name].size))
    try:
        return _fields.label({name: payload}), picture
    except Unusable as error:
        return f"field '{name}' is {error}"
