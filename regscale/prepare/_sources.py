"""Where pictures with classes come from: a listing once, then any picture by its place.

A listing is sorted, so it is the same for every process, and for every form of the same data.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from regscale.data._images import Unusable, is_picture
from regscale.errors import RegscaleError


class Entry(NamedTuple):
    """A picture: its name (class/file), its class, and where the source finds it."""

    name: str
    label: int
    place: list[Any]  # of what JSON holds


class Listing(NamedTuple):
    """All pictures of a source; no classes where the source only numbers them."""

    classes: tuple[str, ...]
    entries: list[Entry]
    damage: tuple[tuple[str, str], ...] = ()  # (where, what) of the source itself


class Source(Protocol):
    """Travels to other processes: what it opens it opens there."""

    def listing(self) -> Listing: ...

    def read(self, place: list[Any]) -> bytes: ...


def open_source(path: Path, *, within: str = "", split: str = "") -> Source:
    """The source at a path, by what lies there."""
    if path.is_dir():
        return _in_folder(path, split)
    if not path.is_file():
        raise _refused(path, "is not there", "no such file")
    if zipfile.is_zipfile(path):
        return Zip(path, within)
    if path.suffix == ".parquet":
        return _parquet((path,), "")
    if tarfile.is_tarfile(path):
        return _tars((path,))
    raise _refused(path, "is no source of pictures", "neither tar, zip nor parquet")


def of_classes(names: Iterable[tuple[str, list[Any]]]) -> Listing:
    """A listing of (class/file, place): classes are numbered in the order of their names."""
    found = sorted((name, place) for name, place in names)
    classes = tuple(sorted({name.partition("/")[0] for name, _ in found}))
    numbers = {name: number for number, name in enumerate(classes)}
    entries = [Entry(name, numbers[name.partition("/")[0]], place) for name, place in found]
    return Listing(classes, entries)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of class folders; pictures may lie in folders below them."""

    root: Path

    def listing(self) -> Listing:
        return of_classes((name, [name]) for name in self._names())

    def _names(self) -> Iterator[str]:
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
            for parent, _, files in os.walk(folder):
                below = Path(parent).relative_to(self.root).as_posix()
                yield from (f"{below}/{file}" for file in files if is_picture(file))

    def read(self, place: list[Any]) -> bytes:
        return (self.root / str(place[0])).read_bytes()


@dataclass(frozen=True, slots=True)
class Zip:
    """A zip of class folders; `within` is the folder that holds them, else the one common to all.

    Nothing is unpacked, so a name that leads elsewhere is only a name.
    """

    path: Path
    within: str

    def listing(self) -> Listing:
        names = [
            info.filename
            for info in _archive(self.path).infolist()
            if is_picture(info.filename) and not info.filename.startswith("__MACOSX/")
        ]
        root = self.within.strip("/") + "/" if self.within else _common(names)
        chosen = {name for name in names if name.startswith(root) and "/" in name[len(root) :]}
        return of_classes((name[len(root) :], [name]) for name in chosen)

    def read(self, place: list[Any]) -> bytes:
        try:
            payload: bytes = _archive(self.path).read(place[0])
        except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
            raise Unusable(f"damaged inside the zip ({error})") from error
        return payload


@lru_cache(maxsize=2)
def _archive(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _common(names: list[str]) -> str:
    """The folders that all names share, above the folder of a class."""
    parents = {name.rpartition("/")[0] for name in names} or {""}
    common = os.path.commonpath(parents) if "" not in parents else ""
    if common in parents:  # a single class, or pictures beside the classes
        common = common.rpartition("/")[0]
    return common + "/" if common else ""


def _in_folder(path: Path, split: str) -> Source:
    parquet = sorted(path.rglob("*.parquet"))
    tars = sorted(path.glob("*.tar"))
    if parquet:
        return _parquet(tuple(parquet), split)
    return _tars(tuple(tars)) if tars else Folder(path)


def _tars(paths: tuple[Path, ...]) -> Source:
    source: Source = import_module("regscale.prepare._tars").open_tars(paths)
    return source


def _parquet(paths: tuple[Path, ...], split: str) -> Source:
    if find_spec("pyarrow") is None:
        raise RegscaleError(
            paths[0],
            "is read with pyarrow",
            found="no such package",
            fix="Install it: pip install pyarrow",
        )
    source: Source = import_module("regscale.prepare._parquet").open_parquet(paths, split)
    return source


def _refused(path: Path, what: str, found: str) -> RegscaleError:
    fix = "Give an ImageNet folder, its tar, a zip, a folder of parquet files or of shards."
    return RegscaleError(path, what, found=found, fix=fix)
