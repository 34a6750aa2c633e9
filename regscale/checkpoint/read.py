"""Loading: any range of any tensor, every byte of it verified before it is handed over."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regscale.checkpoint.data_file import UNREADABLE, DataFile, StoredPiece
from regscale.checkpoint.files import reported
from regscale.checkpoint.format import (
    DTYPES,
    FORMAT,
    MANIFEST,
    RESTORE,
    VERSION,
    data_name,
    digest_of_blocks,
    index_name,
    unseal,
)
from regscale.checkpoint.part import bytes_of
from regscale.cluster import Cluster
from regscale.errors import RegscaleError

ALONE = Cluster(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


class Reader:
    """A checkpoint. Opening verifies manifest, indexes and file sizes; reading, what it reads.

    Opening on several ranks is collective: one of them reads and tells the others, so that
    thousands do not ask a file system for the same small files.
    """

    def __init__(self, folder: Path, cluster: Cluster = ALONE) -> None:
        self.folder = folder
        manifest, indexes = cluster.from_first(lambda: _read_small_files(folder))
        self.step: int = manifest["step"]
        self.samples: int = manifest["samples"]
        self.config: dict[str, Any] = manifest["config"]
        self.progress: dict[str, Any] = manifest["progress"]
        self.partition: str = manifest["partition"]
        self._tensors: dict[str, dict[str, Any]] = manifest["tensors"]
        self._pieces: dict[str, list[StoredPiece]] = {name: [] for name in self._tensors}
        self._files: list[DataFile] = []
        for writer, text in enumerate(indexes):
            self._add_part(writer, text, manifest["files"])

    def names(self) -> list[str]:
        """The logical tensors, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._describe(name)["shape"])

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._describe(name)["dtype"]]

    def tensor(self, name: str) -> Tensor:
        """All of a tensor, in its shape."""
        shape = self.shape(name)
        return self.range(name, 0, math.prod(shape)).reshape(shape)

    def range(self, name: str, start: int, stop: int) -> Tensor:
        """The elements [start, stop) of the flattened tensor; besides, memory for one block."""
        numel = math.prod(self.shape(name))
        assert 0 <= start <= stop <= numel, f"{name} has {numel} elements, not [{start}, {stop})"
        values = torch.empty(stop - start, dtype=self.dtype(name))
        for piece in self._pieces[name]:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                into = bytes_of(values[first - start : last - start])
                piece.read(into, first, values.element_size())
        return values

    def verify(self, *, share: int = 0, shares: int = 1) -> None:
        """Read everything and compare it with its digests.

        Several readers split the work: each passes its own `share` of `shares`.
        """
        blocks = [(file, number) for file in self._files for number in range(file.num_blocks)]
        for file, number in blocks[share::shares]:
            file.block(number)

    def _describe(self, name: str) -> dict[str, Any]:
        if name not in self._tensors:
            close = difflib.get_close_matches(name, self._tensors, n=3)
            raise RegscaleError(
                self.folder,
                f"holds no tensor '{name}'",
                found=f"{len(self._tensors)} tensors, nearest {', '.join(close) or 'none'}",
                fix="Check that the checkpoint and the config belong to the same model.",
            )
        return self._tensors[name]

    def _add_part(self, writer: int, text: bytes, listed: dict[str, dict[str, Any]]) -> None:
        path, data = self.folder / index_name(writer), self.folder / data_name(writer)
        index, found = unseal(path, text)
        blocks = digest_of_blocks(index["blocks"])
        if (found, blocks) != (listed[path.name]["digest"], listed[data.name]["digest"]):
            raise RegscaleError(
                path,
                f"is not the file that the manifest lists: xxh3 {listed[path.name]['digest']}",
                found=f"xxh3 {found}, so it belongs to another checkpoint",
                fix=RESTORE,
            )
        stored = DataFile(data, index)
        self._files.append(stored)
        for row in index["pieces"]:
            self._pieces[row["name"]].append(StoredPiece(**row, file=stored))


def _read_small_files(folder: Path) -> tuple[dict[str, Any], list[bytes]]:
    """The manifest, and the bytes of the indexes that it lists; sizes of all files are right."""
    manifest, indexes = _read_manifest(folder), []
    for writer in range(manifest["num_writers"]):
        for name in (index_name(writer), data_name(writer)):
            _check_size(folder / name, manifest["files"][name]["size"])
        path = folder / index_name(writer)
        with reported(path, UNREADABLE):
            indexes.append(path.read_bytes())
    return manifest, indexes


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    with reported(path, UNREADABLE):
        manifest, _ = unseal(path, path.read_bytes())
    if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
        raise RegscaleError(
            path,
            f"this regscale reads {FORMAT} version {VERSION}",
            found=f"{manifest['format']} version {manifest['version']}",
            fix="Use the release of regscale that wrote it.",
        )
    named = re.match(r"step-(\d+)", folder.name)
    if named and int(named[1]) != manifest["step"]:
        raise RegscaleError(
            path,
            f"the manifest is of step {manifest['step']}",
            found=f"the folder's name {folder.name}",
            fix="Give the folder back the name that belongs to its step.",
        )
    return manifest


def _check_size(path: Path, expected: int) -> None:
    with reported(path, UNREADABLE):
        size = path.stat().st_size
    if size != expected:
        raise RegscaleError(
            path,
            f"must have the {expected} bytes that the manifest states",
            found=f"{size} bytes",
            fix=RESTORE,
        )
