"""Which shards a run reads: folders, globs and shards to places in merged indexes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path

import fsspec

from regscale.data import _merged
from regscale.data._cache import Cache, from_store
from regscale.data._merged import Index, Shard
from regscale.errors import RegscaleError

PATTERN = "*.tar"


@dataclass(frozen=True, slots=True)
class Place:
    """A shard of the data set; its samples begin at row `first` of its folder's index."""

    shard: Shard
    url: str
    index: Index
    first: int


@dataclass(frozen=True, slots=True)
class Selection:
    """The shards of a data set in their order; sample i lies in the shard that `starts` tells."""

    places: tuple[Place, ...]
    starts: tuple[int, ...]  # of each shard, and the end

    @property
    def num_samples(self) -> int:
        return self.starts[-1]

    def locate(self, sample: int) -> tuple[int, int]:
        """(place, row of its index) of a sample."""
        place = bisect_right(self.starts, sample) - 1
        return place, self.places[place].first + sample - self.starts[place]


def is_remote(url: str) -> bool:
    """Whether a URL is for fsspec."""
    return "://" in url


def select(urls: Sequence[str], cache: Cache) -> Selection:
    """The shards that `urls` name; opens one index for each folder."""
    places: list[Place] = []
    indexes: dict[str, Index] = {}
    for url in (each for written in urls for each in _expand(written)):
        folder, pattern = _folder_and_pattern(url)
        if folder not in indexes:
            indexes[folder] = _open(folder, cache)
        found = list(_matching(indexes[folder], folder, pattern))
        if not found:
            raise RegscaleError(
                url,
                "matches no shard of the index",
                found=", ".join(s.name for s in indexes[folder].shards[:6]) or "no shards",
                fix=f"Name a folder of {PATTERN}, a glob or a shard.",
            )
        places += found
    _refuse_twice(place.url for place in places)
    counts = [place.shard.num_samples for place in places]
    return Selection(tuple(places), tuple(accumulate(counts, initial=0)))


def _expand(url: str) -> Iterator[str]:
    """Ranges in braces, as WebDataset writes them: x-{000..127}.tar."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", url)
    if match is None:
        yield url
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        text = f"{number:0{len(match[1])}d}"
        yield from _expand(url[: match.start()] + text + url[match.end() :])


def _folder_and_pattern(url: str) -> tuple[str, str]:
    folder, _, name = url.rstrip("/").rpartition("/")
    if url.endswith("/") or not (name.endswith(".tar") or any(c in name for c in "*?[")):
        return url.rstrip("/") or "/", PATTERN
    return folder or ("/" if url.startswith("/") else "."), name


def _open(folder: str, cache: Cache) -> Index:
    """The merged index of a folder; shards that it does not know are refused."""
    with _reached(folder):
        names = _list(folder)
    if _merged.NAME not in names:
        shards = sorted(name for name in names if fnmatchcase(name, PATTERN))
        raise RegscaleError(
            folder,
            f"has no {_merged.NAME}",
            found=f"{len(shards):,} shards" + (f", the first {shards[0]}" if shards else ""),
            fix=f"Make it once: python -m regscale.prepare index {folder}",
        )
    where = f"{folder}/{_merged.NAME}"
    with _reached(where):
        path = cache.copy(where) if is_remote(where) else Path(where)
    index = _merged.read(path)
    _compare(folder, names, {shard.name for shard in index.shards})
    return index


@contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RegscaleError(
            url,
            "cannot be read as a folder of shards",
            found=error.strerror or error,
            fix="Set data.urls to a folder of tars, a glob or a list of shards.",
        ) from error


def _list(folder: str) -> set[str]:
    """The names in a folder, of a disk or of a store."""
    if not is_remote(folder):
        return {each.name for each in Path(folder).iterdir()}
    with from_store():
        files, path = fsspec.core.url_to_fs(folder)
        return {each.rpartition("/")[2] for each in files.ls(path, detail=False)}


def _compare(folder: str, names: set[str], indexed: set[str]) -> None:
    there = {name for name in names if fnmatchcase(name, PATTERN)}
    for shards, what in (
        (sorted(indexed - there), "lacks shards of its index"),
        (sorted(there - indexed), "holds shards that its index does not know"),
    ):
        if shards:
            raise RegscaleError(
                folder,
                what,
                found=f"{len(shards):,}, the first {shards[0]}",
                fix=f"Restore them, or run python -m regscale.prepare index {folder}",
            )


def _matching(index: Index, folder: str, pattern: str) -> Iterator[Place]:
    first = 0
    for shard in index.shards:
        if fnmatchcase(shard.name, pattern):
            yield Place(shard, f"{folder}/{shard.name}", index, first)
        first += shard.num_samples


def _refuse_twice(urls: Iterable[str]) -> None:
    seen: set[str] = set()
    for url in urls:
        if url in seen:
            raise RegscaleError(
                "data.urls", "names a shard twice", found=url, fix="Name each shard once."
            )
        seen.add(url)
