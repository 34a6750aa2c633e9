"""Copies of whole files on the node's own disk, shared by its processes, the oldest removed first.

A copy grows in `NAME.part`, whose lock its writer holds, and gets its name when it is whole. Only
who holds the lock of a part renames or removes it: one without a lock was left by a killed process.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import fsspec

from regscale.data._index import quick_hash
from regscale.data._merged import Shard
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

CHUNK = 1 << 22
PART = ".part"
NAMES = "[0-9a-f]" * 24 + "-*"  # what the cache made; no other file of its folder is touched
Progress = Callable[[], None]


class Cache:
    """A folder for copies, and how many bytes of them it holds."""

    def __init__(self, folder: str, capacity: int) -> None:
        name = f"regscale-cache-{os.getuid()}"
        self.folder = Path(folder) if folder else Path(tempfile.gettempdir()) / name
        self.chosen, self.capacity = bool(folder), capacity

    def copy(self, url: str, shard: Shard | None = None, progress: Progress = lambda: None) -> Path:
        """The local copy of a file: of `shard`, or of what the store holds by this name."""
        version = "-".join(map(str, shard[1:4])) if shard else _stored_version(url)
        digest = hashlib.blake2b(f"{url}\0{version}".encode(), digest_size=12).hexdigest()
        target = self.folder / f"{digest}-{url.rpartition('/')[2]}"
        self._make_folder()
        if not self._holds(target, shard):
            with self._alone(target, progress) as part:
                if not self._holds(target, shard):
                    self._fetch(url, part, shard.size if shard else 0, progress)
                    with self._keeping():
                        os.replace(part.name, target)
        return target

    def _holds(self, target: Path, shard: Shard | None) -> bool:
        """Whether the copy is there, and is this shard; it counts as used just now."""
        with self._keeping():
            try:
                os.utime(target)
                with open(target, "rb", buffering=0) as copy:
                    size = os.fstat(copy.fileno()).st_size
                    quick = quick_hash(lambda at, length: os.pread(copy.fileno(), length, at), size)
            except FileNotFoundError:
                return False
        return shard is None or (size, quick) == (shard.size, shard.quick)

    def _make_folder(self) -> None:
        with self._keeping():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = self.folder.stat().st_uid
        if not self.chosen and owner != os.getuid():
            raise RegscaleError(
                self.folder,
                "is this user's cache by its name, but belongs to another",
                found=f"user {owner}",
                fix="Set data.cache to a folder of your own.",
            )

    def _fetch(self, url: str, part: FileIO, size: int, progress: Progress) -> None:
        began = time.monotonic()
        with from_store(), fsspec.open(url, "rb") as source:
            stored = getattr(source, "size", None)
            expected = size if stored is None else stored
            with self._keeping():
                self._make_room(expected)
            while chunk := source.read(CHUNK):
                with self._keeping():
                    _write_all(part, chunk)
                progress()
        arrived = os.fstat(part.fileno()).st_size
        if arrived < expected:
            raise OSError(f"a short copy: {arrived:,} of {expected:,} bytes came to {self.folder}")
        log.debug("%s: copied %s in %.1f s", url, gib(arrived), time.monotonic() - began)

    def _make_room(self, size: int) -> None:
        """Remove abandoned parts, then the copies that were used least recently.

        A process that has one of them open reads on.
        """
        total, copies = size, []
        for path in self.folder.glob(NAMES):
            if path.suffix == PART and _remove_abandoned(path):
                continue
            if (about := _stat(path)) is not None:
                total += about.st_size
                copies.append((about.st_mtime_ns, about.st_size, path))
        for _, length, path in sorted(copies):
            if total > self.capacity and path.suffix != PART:
                path.unlink(missing_ok=True)
                total -= length

    @contextmanager
    def _alone(self, target: Path, progress: Progress) -> Iterator[FileIO]:
        """The empty part of a copy, for one process at a time; those who wait see it grow."""
        path = target.with_name(target.name + PART)
        while True:
            with self._keeping():
                part = open(path, "ab", buffering=0)  # noqa: SIM115
            _wait_for_lock(part, progress)
            if _lies_at(part, path):
                break
            part.close()
        with part:
            part.truncate(0)
            try:
                yield part
            finally:
                if _lies_at(part, path):
                    path.unlink()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Failures of the node's disk, which are none of the store's."""
        try:
            yield
        except OSError as error:
            held = sum(about.st_size for p in self.folder.glob(NAMES) if (about := _stat(p)))
            raise RegscaleError(
                f"data.cache: {self.folder}",
                "cannot take a copy",
                found=f"{error.strerror or error}; copies take {gib(held)} of the "
                f"{gib(self.capacity)} that data.cache_gib allows",
                fix="Set data.cache to a folder on a disk of the node that this user may write, "
                "and data.cache_gib to less than that disk can give.",
            ) from error


def gib(size: float) -> str:
    """Bytes as a user reads them."""
    return f"{size / 2**30:.3g} GiB"


@contextmanager
def from_store() -> Iterator[None]:
    """Failures of any store as OSError; each has errors of its own."""
    try:
        yield
    except (OSError, RegscaleError):
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error


def _stored_version(url: str) -> str:
    with from_store():
        files, path = fsspec.core.url_to_fs(url)
        return str(files.ukey(path))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _lies_at(file: FileIO, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    there = _stat(path)
    return there is not None and os.path.samestat(there, os.fstat(file.fileno()))


def _wait_for_lock(part: FileIO, progress: Progress) -> None:
    """Whoever waits sees the growth of the part as its own progress."""
    size = -1
    while True:
        try:
            return fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (now := os.fstat(part.fileno()).st_size) != size:
                size = now
                progress()
            time.sleep(0.02)


def _remove_abandoned(path: Path) -> bool:
    """Remove a part that nobody writes; False while somebody does."""
    try:
        with open(path, "rb", buffering=0) as part:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _lies_at(part, path):
                path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
