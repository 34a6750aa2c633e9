"""Pictures in parquet files, as Hugging Face data sets keep them: image bytes and a class number.

Rows are read a row group at a time, so the order of the rows is the fast one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]

from regscale.data._images import Unusable
from regscale.errors import RegscaleError
from regscale.prepare._sources import Entry, Listing

IMAGE = "image"  # bytes, or a struct of bytes and path
LABEL = "label"


def open_parquet(paths: tuple[Path, ...], split: str) -> Parquet:
    """The files of one split; where there are several, one must be chosen."""
    chosen = tuple(path for path in paths if path.name.startswith(split))
    splits = {path.name.partition("-")[0] for path in chosen if "-" in path.name}
    if not chosen or len(splits) > 1:
        found = ", ".join(sorted(splits)) or ", ".join(path.name for path in paths[:3])
        raise RegscaleError(
            paths[0].parent,
            "holds several splits" if chosen else f"has no parquet file that begins with '{split}'",
            found=found,
            fix="Choose one, as --split train.",
        )
    return Parquet(chosen)


@dataclass(frozen=True, slots=True)
class Parquet:
    """The rows of some files, in their order."""

    paths: tuple[Path, ...]

    def listing(self) -> Listing:
        rows: list[tuple[str, str, int, list[Any]]] = []
        damage: list[tuple[str, str]] = []
        for number, path in enumerate(self.paths):
            for place, (name, label) in _rows(path):
                where = f"{path.stem}/{place[0]:05d}-{place[1]:05d}"
                if label is None or label < 0:  # a test split has -1
                    damage.append((where, f"has no class number but {label}"))
                else:
                    rows.append((name or where, where, label, [number, *place]))
        unique = len({name for name, *_ in rows}) == len(rows)
        entries = [
            Entry(name if unique else where, label, place) for name, where, label, place in rows
        ]
        return Listing(_classes(self.paths[0]), entries, tuple(damage))

    def read(self, place: list[Any]) -> bytes:
        number, group, row = place
        payload = _column(self.paths[number], group)[row].as_py()
        if isinstance(payload, dict):
            payload = payload.get("bytes")
        if not isinstance(payload, bytes):
            raise Unusable(f"no bytes of a picture but {type(payload).__name__}")
        return payload


@lru_cache(maxsize=8)
def _file(path: Path) -> Any:
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise RegscaleError(
            path, "cannot be read as parquet", found=error, fix="Restore the file."
        ) from error
    columns = file.schema_arrow.names
    if IMAGE not in columns or LABEL not in columns:
        raise RegscaleError(
            path,
            f"has no columns '{IMAGE}' and '{LABEL}'",
            found=", ".join(columns),
            fix="Rename the columns of the picture and of the class number.",
        )
    return file


@lru_cache(maxsize=2)
def _column(path: Path, group: int) -> Any:
    return _file(path).read_row_group(group, columns=[IMAGE]).column(IMAGE)


def _rows(path: Path) -> Iterator[tuple[tuple[int, int], tuple[str, int | None]]]:
    """((row group, row), (path of the picture, class)) of each row, without reading pictures."""
    file = _file(path)
    kind = file.schema_arrow.field(IMAGE).type
    named = any(kind.field(i).name == "path" for i in range(kind.num_fields))
    for group in range(file.num_row_groups):
        wanted = [f"{IMAGE}.path", LABEL] if named else [LABEL]
        table = file.read_row_group(group, columns=wanted)
        labels = table.column(LABEL).to_pylist()
        structs = table.column(IMAGE).to_pylist() if named else [None] * len(labels)
        for row, (struct, label) in enumerate(zip(structs, labels, strict=True)):
            yield (group, row), ((struct or {}).get("path") or "", label)


def _classes(path: Path) -> tuple[str, ...]:
    """The names of the classes, where the file's notes tell them."""
    notes = (_file(path).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return tuple(json.loads(notes)["info"]["features"][LABEL]["names"])
    except (ValueError, KeyError, TypeError):
        return ()
