"""Window mode: whole shards through a cache on the node, and an order that reads few at a time.

Shards are permuted in each epoch; samples are permuted within windows of neighbouring shards.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np

from regscale import chance
from regscale.data._merged import Array

log = logging.getLogger(__name__)

CHUNK = 1 << 22
NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "weka", "panfs", "afs", "9p")
Progress = Callable[[], None]


class Windows:
    """Counters to samples by two levels of shuffling: a pure function of seed, epoch and place."""

    def __init__(self, counts: Sequence[int], width: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.firsts = np.concatenate([[0], np.cumsum(self.counts)])
        self.width = width
        self.num_windows = -(-len(self.counts) // width)
        self._plan = lru_cache(maxsize=3)(self._make_plan)
        self._window = lru_cache(maxsize=3)(self._make_window)

    def __reduce__(self) -> tuple[type[Windows], tuple[list[int], int]]:
        return Windows, (self.counts.tolist(), self.width)

    def indices(self, counters: Sequence[int], seed: int) -> list[int]:
        """The samples at these places of the run."""
        found: list[int] = []
        for counter in counters:
            epoch, window, place = self._locate(counter, seed)
            found.append(int(self._window(seed, epoch, window)[place]))
        return found

    def ahead(self, counter: int, seed: int) -> list[int]:
        """The shards of the window after that of `counter`."""
        epoch, window, _ = self._locate(counter, seed)
        if window + 1 == self.num_windows:
            epoch, window = epoch + 1, -1
        return [int(shard) for shard in self._shards(seed, epoch, window + 1)]

    def _locate(self, counter: int, seed: int) -> tuple[int, int, int]:
        epoch, place = divmod(counter, int(self.firsts[-1]))
        _, ends = self._plan(seed, epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        return epoch, window, place - (int(ends[window - 1]) if window else 0)

    def _make_plan(self, seed: int, epoch: int) -> tuple[Array, Array]:
        """The order of shards, and the places where windows end."""
        order = chance.permutation(
            len(self.counts), seed=seed, purpose="order/shards", counter=epoch
        )
        sums = np.add.reduceat(self.counts[order], np.arange(0, len(order), self.width))
        return order, np.cumsum(sums)

    def _shards(self, seed: int, epoch: int, window: int) -> Array:
        order: Array = self._plan(seed, epoch)[0]
        return order[window * self.width : (window + 1) * self.width]

    def _make_window(self, seed: int, epoch: int, window: int) -> Array:
        """The samples of a window in their order."""
        shards = self._shards(seed, epoch, window)
        samples = np.concatenate([np.arange(self.firsts[s], self.firsts[s + 1]) for s in shards])
        number = epoch * self.num_windows + window
        order = chance.permutation(len(samples), seed=seed, purpose="order/window", counter=number)
        shuffled: Array = samples[order]
        return shuffled


class Cache:
    """Copies of files on the node's own disk, shared by its processes, the oldest removed first."""

    def __init__(self, folder: str, capacity: int) -> None:
        name = f"regscale-cache-{os.getuid()}"
        self.folder = Path(folder) if folder else Path(tempfile.gettempdir()) / name
        self.capacity = capacity

    def copy(self, url: str, version: str = "", progress: Progress = lambda: None) -> Path:
        """The local copy of a file; `version` tells contents of one name apart."""
        if not version:
            files, path = fsspec.core.url_to_fs(url)
            version = str(files.ukey(path))
        digest = hashlib.blake2b(f"{url}\0{version}".encode(), digest_size=12).hexdigest()
        target = self.folder / f"{digest}-{url.rpartition('/')[2]}"
        if not _touch(target):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone(target, progress):
                if not _touch(target):
                    self._fetch(url, target, progress)
        return target

    def _fetch(self, url: str, target: Path, progress: Progress) -> None:
        part, began = target.with_name(target.name + ".part"), time.monotonic()
        try:
            with fsspec.open(url, "rb") as source, open(part, "wb") as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    progress()
                size = file.tell()
        except OSError:
            raise
        except Exception as error:  # each store has errors of its own
            raise OSError(str(error) or type(error).__name__) from error
        self._make_room(size, keep=target)
        os.replace(part, target)
        seconds = time.monotonic() - began
        log.debug("%s: copied %.2f GiB in %.1f s", url, size / 2**30, seconds)

    def _make_room(self, size: int, *, keep: Path) -> None:
        """Remove the copies that were used least recently; readers that hold one open go on."""
        copies = []
        for path in self.folder.glob("*-*.tar"):
            if path != keep and (about := _stat(path)) is not None:
                copies.append((about.st_mtime_ns, about.st_size, path))
        total = size + sum(each[1] for each in copies)
        for _, length, path in sorted(copies):
            if total <= self.capacity:
                return
            path.unlink(missing_ok=True)
            total -= length


class Ahead:
    """Copies the shards of the next window in the background, once for each window."""

    def __init__(self, copy: Callable[[int], object]) -> None:
        self.copy = copy
        self.asked: tuple[int, ...] = ()
        self.thread = threading.Thread()

    def ask(self, shards: Sequence[int]) -> None:
        """Begin with these shards unless that was asked before."""
        if self.asked == tuple(shards) or self.thread.is_alive():
            return
        self.asked = tuple(shards)
        self.thread = threading.Thread(target=self._run, args=(self.asked,), daemon=True)
        self.thread.start()

    def _run(self, shards: tuple[int, ...]) -> None:
        for shard in shards:
            try:
                self.copy(shard)
            except OSError as error:  # whoever reads the shard tries again and reports it
                log.debug("shard %s could not be copied ahead: %s", shard, error)


def on_network(path: str, mounts: str = "/proc/mounts") -> bool:
    """Whether a local path lies on a network file system, by the table of mounts."""
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:  # no such table on this system
        return False
    place, best = os.path.realpath(path), ("", "")
    for line in lines:
        _, point, kind = line.split(" ")[:3]
        point = point.replace("\\040", " ")
        if (place + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
            best = (point, kind)
    kind = best[1].removeprefix("fuse.")
    return kind.startswith(NETWORK)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _touch(path: Path) -> bool:
    """Mark a copy as used just now; False where there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _alone(target: Path, progress: Progress) -> Iterator[None]:
    """One process of the node at a time; whoever waits sees the other's progress as its own."""
    part, size = target.with_name(target.name + ".part"), -1
    with open(target.with_name(target.name + ".lock"), "wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                about = _stat(part)
                if about is not None and about.st_size != size:
                    size = about.st_size
                    progress()
                time.sleep(0.02)
        yield
