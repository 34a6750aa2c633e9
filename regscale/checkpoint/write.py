"""Saving: parts from several writers in a temporary folder, one manifest, one rename."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from regscale.checkpoint.files import (
    delete,
    purge,
    reported,
    sweep,
    sync_folder,
    temporary,
    write_file,
)
from regscale.checkpoint.format import (
    FORMAT,
    MANIFEST,
    VERSION,
    Phase,
    Piece,
    Record,
    check_cover,
    check_same,
    data_name,
    digest_of_blocks,
    index_name,
    no_phase,
    seal,
    step_name,
    unseal,
)
from regscale.checkpoint.part import UNSAVED, write_part
from regscale.errors import RegscaleError


def save(root: Path, pieces: Iterable[Piece], record: Record, *, phase: Phase = no_phase) -> Path:
    """Save from one process, and return the folder. Nothing is left behind where that fails."""
    folder = begin(root, record.step)
    saved = False
    try:
        phase("begin")
        part = write_part(folder, 0, pieces, phase=phase)
        final = commit(folder, [part], record, phase=phase)
        saved = True
    finally:
        if not saved:
            abandon(folder)
    return final


def begin(root: Path, step: int) -> Path:
    """The temporary folder that all writers of a save share; one rank makes it and tells the rest.

    Removes the leftovers of killed saves.
    """
    with reported(root, UNSAVED):
        root.mkdir(parents=True, exist_ok=True)
        sync_folder(root.parent)
        sweep(root)
        folder = temporary(root, step_name(step))
        folder.mkdir()
    return folder


def abandon(folder: Path) -> None:
    """Give a save up: delete its temporary folder, if it is still there."""
    if folder.exists():
        delete(folder)


def commit(
    folder: Path,
    parts: Sequence[str],
    record: Record,
    *,
    ready: Callable[[], None] = lambda: None,
    phase: Phase = no_phase,
) -> Path:
    """Give the checkpoint its manifest and its name, and return the folder.

    One rank calls this when every writer has returned from `write_part`: the caller's barrier.
    `parts` are their digests, in the order of the writers. `ready` is called right before the
    folder gets its name. Where this fails the temporary folder is deleted. A checkpoint of the
    same step is replaced.
    """
    root, name = folder.parent, step_name(record.step)
    named = False
    try:
        with reported(folder, UNSAVED):
            manifest = _manifest(folder, parts, record)
            phase("manifest")
            write_file(folder / MANIFEST, seal(manifest)[0])
            sync_folder(folder)
            phase("rename")
            ready()
            _rename(folder, root / name, phase)
            named = True
            phase("renamed")
            replaced = root / f"{name}.replaced"
            if replaced.exists():
                purge(replaced, phase=phase)
    finally:
        if not named:
            abandon(folder)
    return root / name


def _rename(folder: Path, final: Path, phase: Phase) -> None:
    """Name the new checkpoint. One of the same step steps aside and stays loadable until then."""
    if final.exists():
        aside = final.with_name(f"{final.name}.replaced")
        if aside.exists():
            purge(aside)
        final.rename(aside)
        phase("replaced")
    folder.rename(final)
    sync_folder(final.parent)


def _manifest(folder: Path, parts: Sequence[str], record: Record) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    ranges: dict[str, list[tuple[int, int]]] = {}
    for writer, expected in enumerate(parts):
        index, described = _read_index(folder, writer, expected)
        files.update(described)
        for name, description in index["tensors"].items():
            check_same(folder, name, tensors.setdefault(name, description), description)
        for row in index["pieces"]:
            ranges.setdefault(row["name"], []).append((row["start"], row["stop"]))
    for name, description in tensors.items():
        check_cover(name, math.prod(description["shape"]), ranges.get(name, []), folder)
    return {
        "format": FORMAT,
        "version": VERSION,
        "step": record.step,
        "samples": record.samples,
        "config": record.config,
        "progress": record.progress,
        "partition": record.partition,
        "num_writers": len(parts),
        "files": files,
        "tensors": tensors,
    }


def _read_index(
    folder: Path, writer: int, expected: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The index of a part that has to be what its writer wrote, and how the manifest lists it."""
    path, data = folder / index_name(writer), folder / data_name(writer)
    text, size = path.read_bytes(), data.stat().st_size
    index, found = unseal(path, text)
    if (found, size) != (expected, index["size"]):
        raise RegscaleError(
            path,
            f"is not what writer {writer} wrote: xxh3 {expected}",
            found=f"xxh3 {found}, {size} bytes of data",
            fix="Only one job may save to a run folder.",
        )
    return index, {
        path.name: {"size": len(text), "digest": found},
        data.name: {"size": size, "digest": digest_of_blocks(index["blocks"])},
    }
