"""Reads by position from shards: few open files, failures are retried, nothing hangs for ever."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from regscale.data._cache import Progress
from regscale.data._index import quick_hash
from regscale.data._select import Place
from regscale.errors import RegscaleError

T = TypeVar("T")

MAX_OPEN = 128
ALIGNMENT = 64  # bytes: payloads lie in memory as NumPy aligns them
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
        max_open: int = MAX_OPEN,
    ) -> None:
        self.places, self.local = places, local
        self.timeout_seconds, self.retry_seconds = timeout_seconds, retry_seconds
        self.max_open = max_open
        self._open: OrderedDict[int, int] = OrderedDict()  # place -> descriptor
        self._checked: set[int] = set()
        self._memory = bytearray()  # of `borrow`: fresh memory for each batch costs page faults

    def borrow(self, spans: Sequence[Span]) -> list[memoryview]:
        """The bytes of each span, in memory that the next call takes back."""
        length = sum(_aligned(span.length) for span in spans)
        if len(self._memory) < length:
            self._memory = bytearray(length)
        return self._fill(spans, self._memory)

    def fetch(self, spans: Sequence[Span]) -> list[memoryview]:
        """The bytes of each span, for the caller to keep."""
        return self._fill(spans, bytearray(sum(_aligned(span.length) for span in spans)))

    def _fill(self, spans: Sequence[Span], memory: bytearray) -> list[memoryview]:
        """Read in a thread whose silence is an error."""
        views, at, whole = [], 0, memoryview(memory)
        for span in spans:
            views.append(whole[at : at + span.length])
            at += _aligned(span.length)
        done = 0

        def work(progress: Progress) -> None:
            nonlocal done
            for span, view in zip(spans, views, strict=True):
                try:
                    self._read(span, view, progress)
                except OSError as error:
                    self._retry(span, view, progress, error)
                done += 1
                progress()

        try:
            within(self.timeout_seconds, work)
        except TimeoutError as error:
            self._memory = bytearray()  # the thread that hangs may yet write
            raise RegscaleError(
                self.places[spans[min(done, len(spans) - 1)].place].url,
                f"a read stalled for {self.timeout_seconds:g} seconds",
                found="neither data nor an error of the file system",
                fix="Look at the mount of this path, or raise data.timeout_seconds; then resume.",
            ) from error
        return views

    def _retry(self, span: Span, view: memoryview, progress: Progress, failure: OSError) -> None:
        """After a failure, read again from a freshly opened file."""
        for wait in self.retry_seconds:
            self._close(span.place)
            progress()
            time.sleep(wait)
            try:
                return self._read(span, view, progress)
            except OSError as error:
                failure = error
        self._close(span.place)
        raise RegscaleError(
            self.places[span.place].url,
            f"cannot be read after {len(self.retry_seconds) + 1} tries",
            found=failure.strerror or failure,
            fix="Restore the shard or the way to it, then resume: no sample was passed over.",
        ) from failure

    def _read(self, span: Span, view: memoryview, progress: Progress) -> None:
        descriptor = self._descriptor(span.place, progress)
        done = os.preadv(descriptor, [view], span.start)
        while done < span.length:
            more = os.preadv(descriptor, [view[done:]], span.start + done)
            if not more:
                end = span.start + done
                raise changed(self.places[span.place], f"its end at byte {end:,}")
            done += more

    def _descriptor(self, place: int, progress: Progress) -> int:
        descriptor = self._open.get(place)
        if descriptor is not None:
            self._open.move_to_end(place)
            return descriptor
        while len(self._open) >= self.max_open:
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


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


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
