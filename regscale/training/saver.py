"""Checkpoints of all ranks, written in the background while training goes on."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch.distributed as dist

from regscale.checkpoint import LeaseLost, Piece, Record, abandon, begin, commit, retain, set_aside
from regscale.checkpoint.format import Phase, no_phase
from regscale.checkpoint.group import write_together
from regscale.checkpoint.staging import Staging
from regscale.cluster import START_SECONDS, Cluster
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_WRITERS = 64
EXIT_SECONDS = 120.0  # that a process which ends waits for its last save


class RankLost(RuntimeError):
    """Another rank ended during a save. No user's fault: a launcher starts the run again."""


class Saver:
    """Saves a run. One save is under way at a time, in a thread with a line of its own to the
    other ranks, so that it never mixes with what training sends. Making one is collective.

    A save that fails leaves the older checkpoints as they are, is logged by every rank, and
    training goes on. Where a rank or the lease is lost, the next `save` or `wait` raises; without
    the lease nothing in the run's folder is renamed or deleted.
    """

    def __init__(
        self,
        root: Path,
        cluster: Cluster,
        *,
        keep_last: int,
        keep_every: int,
        keep_step: Callable[[], int | None] = lambda: None,
        resumed: int | None = None,  # the step that the run goes on from
        check_lease: Callable[[], None] = lambda: None,  # of rank 0
        max_writers: int = MAX_WRITERS,
        timeout_seconds: float = START_SECONDS,
        phase: Phase = no_phase,
    ) -> None:
        self.stall_seconds = 0.0  # that the last save() held its caller
        self.error: RegscaleError | None = None  # of the last save
        self._root, self._cluster = root, _own_line(cluster, timeout_seconds)
        self._keep_last, self._keep_every, self._keep_step = keep_last, keep_every, keep_step
        self._resumed, self._check_lease = resumed, check_lease
        self._max_writers, self._phase = max_writers, phase
        self._staging = Staging()
        self._thread: threading.Thread | None = None
        self._newest: int | None = None
        self._fault: Exception | None = None
        atexit.register(self.close)

    def save(self, pieces: Iterable[Piece], record: Record) -> None:
        """Copy this rank's pieces and write them in the background. Collective; `record` is the
        same on every rank."""
        start = time.perf_counter()
        under_way = self._thread is not None and self._thread.is_alive()
        self.wait()
        if under_way:
            waited = time.perf_counter() - start
            log.info("step %s: waited %.1f s for the save before", f"{record.step:,}", waited)
        copies = self._staging.copy(pieces)
        self._thread = threading.Thread(
            target=self._run, args=(copies, record), name="saver", daemon=True
        )
        self._thread.start()
        self.stall_seconds = time.perf_counter() - start

    def wait(self, *, strict: bool = False) -> int | None:
        """Wait for the save under way, and return the newest step that this saver committed.

        `strict` raises the error of the last save, as is right where no other save follows.
        """
        if self._thread is not None:
            self._thread.join()
        if self._fault is not None:
            raise self._fault
        if strict and self.error is not None:
            raise self.error
        return self._newest

    def close(self, *, patience_seconds: float = EXIT_SECONDS) -> None:
        """Give a save under way time to end; after that it stays a temporary folder."""
        atexit.unregister(self.close)
        if self._thread is None:
            return
        self._thread.join(patience_seconds)
        if self._thread.is_alive():
            log.warning("%s: the save under way is left unfinished", self._root)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.close(patience_seconds=0.0 if interrupted else EXIT_SECONDS)

    def _run(self, pieces: Sequence[Piece], record: Record) -> None:
        """The thread: nothing may leave it unseen."""
        try:
            self._save(pieces, record)
            self.error, self._newest = None, record.step
        except LeaseLost as error:
            self.error = self._fault = error
            log.warning("step %s: the save is given up: %s", f"{record.step:,}", error)
        except RegscaleError as error:
            self.error = error
            log.warning("training goes on without this checkpoint: %s", error)
        except RuntimeError as error:  # of the line to the other ranks
            self._fault = _lost(self._root, record.step, error)
            log.warning("%s", self._fault)
        except Exception as error:
            self._fault = error

    def _save(self, pieces: Sequence[Piece], record: Record) -> None:
        cluster, done = self._cluster, False
        made = cluster.from_first(lambda: self._guarded(lambda: self._begin(record.step)))
        folder = self._root / made.name
        try:
            self._phase("begin")
            parts = self._parts(folder, pieces)
            cluster.from_first(lambda: self._guarded(lambda: self._commit(folder, parts, record)))
            done = True
        finally:
            if cluster.first and not done:
                abandon(folder)

    def _begin(self, step: int) -> Path:
        self._check_lease()
        return begin(self._root, step)

    def _parts(self, folder: Path, pieces: Sequence[Piece]) -> list[str]:
        """The digests of all writers; the error of any, on all."""
        own: str | RegscaleError | None
        try:
            own = self._guarded(lambda: self._write(folder, pieces))
        except RegscaleError as error:
            own = error
        outcomes = self._cluster.gather(own)
        errors = [each for each in outcomes if isinstance(each, RegscaleError)]
        if errors:
            raise own if isinstance(own, RegscaleError) else errors[0]
        return [each for each in outcomes if isinstance(each, str)]

    def _write(self, folder: Path, pieces: Sequence[Piece]) -> str | None:
        return write_together(
            folder, pieces, self._cluster, max_writers=self._max_writers, phase=self._phase
        )

    def _commit(self, folder: Path, parts: Sequence[str], record: Record) -> None:
        final = commit(
            folder, parts, record, ready=lambda: self._ready(record.step), phase=self._phase
        )
        log.info("step %s: saved %s", f"{record.step:,}", final)
        try:
            self._check_lease()
            retain(
                self._root,
                saved=record.step,
                keep_last=self._keep_last,
                keep_every=self._keep_every,
                keep_step=self._keep_step(),
                phase=self._phase,
            )
        except RegscaleError as error:  # what is saved is saved
            log.warning("older checkpoints stay: %s", error)

    def _ready(self, step: int) -> None:
        """Before a checkpoint gets its name. At the first of this run the newer ones that its
        start passed over lose theirs."""
        self._check_lease()
        if self._newest is None and self._resumed is not None:
            set_aside(self._root, resumed=self._resumed, saved=step)

    def _guarded(self, make: Callable[[], T]) -> T:
        """`make()`; a programmer's fault is told to the other ranks, which else would wait, and
        raised here when the caller comes again."""
        try:
            return make()
        except RegscaleError:
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and self._cluster.world_size > 1:
                raise  # the line to the other ranks is broken
            self._fault = error
            raise RegscaleError(
                self._root,
                f"rank {self._cluster.rank} met a fault while it saved",
                found=repr(error),
                fix="Its traceback tells where; please report it.",
            ) from error


def _own_line(cluster: Cluster, timeout_seconds: float) -> Cluster:
    if cluster.world_size == 1:
        return replace(cluster, group=None)
    timeout = timedelta(seconds=timeout_seconds)
    return replace(cluster, group=dist.new_group(backend="gloo", timeout=timeout))


def _lost(root: Path, step: int, error: Exception) -> RankLost:
    told = RegscaleError(
        root,
        f"the save of step {step} lost another rank",
        found=str(error).splitlines()[0].partition(". ")[0],
        fix="Look at what ended that rank; the older checkpoints are as they were.",
    )
    return RankLost(str(told))
