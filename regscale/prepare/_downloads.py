"""What img2dataset wrote: tars (`--output_format webdataset`), or folders of files (`files`)."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path

from regscale.data._index import opened
from regscale.data._tar import split_name
from regscale.errors import RegscaleError
from regscale.prepare._tars import samples

Fields = Mapping[str, Callable[[], bytes]]  # by name, read when called


def parts_of(folder: Path) -> list[Path]:
    """The tars of a folder by name; without any, its folders, or itself if files lie there."""
    found = sorted(folder.glob("*.tar")) or sorted(p for p in _listed(folder) if p.is_dir())
    if not found and any(_named(path) for path in _listed(folder)):
        found = [folder]
    if not found:
        raise RegscaleError(
            folder,
            "holds no output of img2dataset",
            found="neither *.tar nor files" if folder.is_dir() else "no such folder",
            fix="Give the folder that img2dataset wrote, with --output_format webdataset or files.",
        )
    return found


def size_of(part: Path) -> int:
    """Bytes."""
    if part.is_file():
        return part.stat().st_size
    return sum(path.stat().st_size for path in _listed(part) if path.is_file())


def samples_of(part: Path, damage: list[tuple[str, str]]) -> Iterator[tuple[str, Fields]]:
    """(key, fields) of a part in its order; damage of a tar is added to the list."""
    if part.is_dir():
        named = sorted((name, path) for path in _listed(part) if (name := _named(path)))
        for key, group in groupby(named, key=lambda each: each[0][0]):
            yield key, {field: path.read_bytes for (_, field), path in group}
        return
    with opened(part) as (read, size):
        for key, members in samples(read, size, part, damage):
            yield key, {name: partial(read, m.start, m.size) for name, m in members.items()}


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _named(path: Path) -> tuple[str, str] | None:
    """(key, field) of a file; img2dataset's own reports (`00000_stats.json`) are none."""
    if path.name.endswith("_stats.json") or not path.is_file():
        return None
    return split_name(path.name)
