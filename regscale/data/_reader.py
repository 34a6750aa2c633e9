"""Reads by position from shards: few open files, failures are retried, nothing hangs for ever."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from regscale.data._index import quick_hash
from regscale.data._select import Place
from regscale.data._window import Progress
from regscale.errors import RegscaleError

T = TypeVar("T")

MAX_OPEN = 128
RETRY_SECONDS = (0.1, 0.5, 2.0)


class Span(NamedTuple):
    """Bytes of a shard."""

    place: int
    start: int
    length: int


class Reader:
    """The shards of a data set, as one process has them open."""

    def __init__(
        self,
        places: Sequence[Place],
        local: Callable[[Place, Progress], str],
        *,
        timeout_seconds: float,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        self.places, self.local = places, local
        self.timeout_seconds, self.retry_seconds = timeout_seconds, retry_seconds
        self._open: OrderedDict[int, int] = OrderedDict()  # place -> descriptor
        self._checked: set[int] = set()

    def fetch(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span, in a thread whose silence is an error."""
        reading = [""]

        def work(progress: Progress) -> list[bytes]:
            found = []
            for span in spans:
                reading[0] = self.places[span.place].url
                found.append(self._patiently(span, progress))
                progress()
            return found

        try:
            return within(self.timeout_seconds, work)
        except TimeoutError as error:
            raise RegscaleError(
                reading[0],
                f"a read stalled for {self.timeout_seconds:g} seconds",
                found="neither data nor an error of the file system",
                fix="Look at the mount of this path, or raise data.timeout_seconds; then resume.",
            ) from error

    def _patiently(self, span: Span, progress: Progress) -> bytes:
        """Read; after a failure, again from a freshly opened file."""
        for wait in (*self.retry_seconds, None):
            try:
                return self._read(span, progress)
            except OSError as error:
                self._close(span.place)
                if wait is None:
                    raise RegscaleError(
                        self.places[span.place].url,
                        f"cannot be read after {len(self.retry_seconds) + 1} tries",
                        found=error.strerror or error,
                        fix="Restore the shard, then resume: no sample was passed over.",
                    ) from error
                progress()
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _read(self, span: Span, progress: Progress) -> bytes:
        descriptor = self._descriptor(span.place, progress)
        data = os.pread(descriptor, span.length, span.start)
        while len(data) < span.length:
            more = os.pread(descriptor, span.length - len(data), span.start + len(data))
            if not more:
                end = span.start + len(data)
                raise changed(self.places[span.place], f"its end at byte {end:,}")
            data += more
        return data

    def _descriptor(self, place: int, progress: Progress) -> int:
        if place in self._open:
            self._open.move_to_end(place)
            return self._open[place]
        while len(self._open) >= MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        descriptor = os.open(self.local(self.places[place], progress), os.O_RDONLY)
        self._open[place] = descriptor
        if place not in self._checked:
            self._check(self.places[place], descriptor)
            self._checked.add(place)
        return descriptor

    def _check(self, place: Place, descriptor: int) -> None:
        """That this is the file that was indexed."""
        size = os.fstat(descriptor).st_size
        if size != place.shard.size:
            raise changed(place, f"{size:,} bytes, indexed {place.shard.size:,}")
        quick = quick_hash(lambda at, length: os.pread(descriptor, length, at), size)
        if quick != place.shard.quick:
            raise changed(place, "another beginning or end than the one that was indexed")

    def _close(self, place: int) -> None:
        descriptor = self._open.pop(place, None)
        if descriptor is not None:
            os.close(descriptor)


def changed(place: Place, found: str) -> RegscaleError:
    """A shard that is not what its index says."""
    return RegscaleError(
        place.url,
        "has changed since it was indexed",
        found=found,
        fix="Restore it, or index it again: python -m regscale.prepare index "
        + place.url.rpartition("/")[0],
    )


def within(seconds: float, work: Callable[[Progress], T]) -> T:
    """What `work` returns; TimeoutError once it has made no progress for so long.

    A read that hangs in the kernel cannot be interrupted: its thread is left behind.
    """
    box: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    last = [time.monotonic()]

    def progress() -> None:
        last[0] = time.monotonic()

    def run() -> None:
        try:
            box.put((work(progress), None))
        except BaseException as error:  # handed to the thread that waits
            box.put((None, error))

    threading.Thread(target=run, daemon=True, name="shards").start()
    while True:
        left = last[0] + seconds - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            result, error = box.get(timeout=left)
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return result  # type: ignore[return-value]
