"""Notices from beside the training thread that it no longer moves, or that another rank has failed,
and ends this process: a collective that waits for a lost rank may never return.

A process ends with `os._exit`: the launcher sees its status and takes the others down.
"""

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from regscale import failures
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

STATUS = 1  # of a process that hung, or that ends because another one failed
POLL_SECONDS = 1.0
STORE_SECONDS = 60.0  # an exchange with the store, which lives in rank 0 or in the launcher
LINGER_SECONDS = 5.0  # that a rank which fails waits until the others know why
TURN_SECONDS = 3.0  # that a rank which meets the same error has to say so itself
GRACE_SECONDS = 10.0  # to write stacks and to end
LONGEST = 32_768  # characters of a failure that are told
STDERR = 2


class Watchdog:
    """A context manager around everything that a rank does in a run. `beat` says that it moves;
    without a beat for `seconds` all stacks go to stderr and to `logs/`, and the process ends.

    Where the interpreter itself is stuck, a timer of `faulthandler`, which needs no lock of
    Python's, dumps and ends it a little later.
    """

    def __init__(self, *, seconds: float, folder: Path, rank: int) -> None:
        self._seconds, self._folder, self._rank = seconds, folder, rank
        self._beaten, self._doing = time.monotonic(), "the start"
        self._allowed: float | None = None  # instead of `seconds`, while something long is done
        self._done = threading.Event()
        self._failed = False  # by an error of this rank's own
        self._first: str | None = None  # what another rank told
        self._line: _Line | None = None
        self._connecting = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=f"watchdog {name}", daemon=True)
            for target, name in ((self._watch, "time"), (self._listen, "ranks"))
        ]

    def beat(self, doing: str) -> None:
        """This rank moves; `doing` is what comes next, as the message of a hang has it."""
        self._doing, self._beaten = doing, time.monotonic()

    def tighten(self, seconds: float) -> None:
        """From here on less time is allowed, such as after the first update, which compiles."""
        if seconds == self._seconds:
            return
        self.beat(self._doing)
        self._seconds = seconds
        _arm(seconds)

    @contextmanager
    def during(self, doing: str, *, seconds: float) -> Iterator[None]:
        """Within the block at least `seconds` are allowed: pictures, an evaluation, a save."""
        before, self._allowed = self._allowed, max(seconds, self._seconds)
        self.beat(doing)
        try:
            yield
        finally:
            self.beat(f"after {doing}")
            self._allowed = before

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A failure that leaves the block is told to the other ranks at once, before this rank's
        own cleaning up."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self.tell(error)
            raise

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks why this one fails. The first rank to do so is what all report."""
        if self._failed:
            return
        self._failed = True
        first = self._first or self._tell(f"rank {self._rank} failed: {_described(error)}")
        if first and not isinstance(error, RegscaleError):  # it lost a peer, rather than its way
            _say(f"{first}\n")

    def _tell(self, failure: str) -> str | None:
        """The failure that was told before this one, if any was."""
        try:
            line = self._connected()
            if line is None:
                return None
            first = line.tell(failure)
            line.hear()
            if first is None:
                line.linger()
        except RuntimeError as lost:  # whoever keeps the store is gone
            log.debug("the other ranks cannot be told: %s", lost)
            return None
        return first

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            limit = self._allowed or self._seconds
            left = self._beaten + limit - time.monotonic()
            _arm(max(left, 0))
            if left < 0:
                self._hangs(limit)

    def _hangs(self, limit: float) -> NoReturn:
        stacks = self._folder / "logs" / f"stacks-rank-{self._rank:05d}.txt"
        error = RegscaleError(
            f"rank {self._rank}",
            f"has not moved for {limit:.0f} s and is ended",
            found=f"it was at {self._doing}; {stacks} and the lines below show where",
            fix="Look for the rank whose stack differs from the others': it is the one they wait "
            "for. Where a step or the data is just slow, allow more seconds.",
        )
        _say(f"error: {error}\n")
        with contextlib.suppress(OSError):
            faulthandler.dump_traceback(STDERR)
        with contextlib.suppress(OSError):
            stacks.parent.mkdir(parents=True, exist_ok=True)
            with stacks.open("w") as file:
                file.write(f"{error}\n")
                file.flush()
                faulthandler.dump_traceback(file)
        _record_nccl(stacks.with_name(f"nccl_trace_rank_{self._rank}"))
        self._leave(str(error))

    def _listen(self) -> None:
        """The failure of another rank. A store that is gone leaves the time limit."""
        try:
            while not self._done.wait(POLL_SECONDS):
                line = self._connected()
                failure = line and line.failure()
                if line and failure:
                    self._follow(line, failure)
                    return
        except RuntimeError as lost:
            log.debug("what becomes of the other ranks is not known: %s", lost)

    def _connected(self) -> "_Line | None":
        with self._connecting:
            self._line = self._line or _Line.to_the_others()
            return self._line

    def _follow(self, line: "_Line", failure: str) -> None:
        """End because another rank failed, unless this one is about to end by itself."""
        self._first = failure
        line.hear()
        if not self._done.wait(TURN_SECONDS) and not self._failed:
            _say(f"{failure}\n")
            who, _, why = failure.partition(": ")
            self._leave(f"{who}: {why.splitlines()[-1]}")

    def _leave(self, reason: str) -> NoReturn:
        """End this process and the loader's workers, without cleaning up: that could hang as well.
        Whoever started the job is left word."""
        _arm(0)
        for child in multiprocessing.active_children():
            child.kill()
        folder = failures.folder()
        if folder is not None:
            failures.leave_word(folder, "fault", reason, rank=self._rank, host=failures.host())
        os._exit(STATUS)

    def __enter__(self) -> "Watchdog":
        self.beat(self._doing)
        _arm(self._seconds)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception | KeyboardInterrupt):
            self.tell(error)
        self._done.set()
        self._threads[0].join()  # the other may wait for the store
        faulthandler.cancel_dump_traceback_later()


class _Line:
    """A connection of its own to the store of the process group: another thread may wait in
    that one for as long as a collective does."""

    def __init__(self, store: Any) -> None:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = torch._C._distributed_c10d.PrefixStore(f"watchdog/{attempt}", store.clone())
        self._store.set_timeout(timedelta(seconds=STORE_SECONDS))
        self._others = dist.get_world_size() - 1
        self._hearing, self._heard = threading.Lock(), False

    @classmethod
    def to_the_others(cls) -> "_Line | None":
        """None as long as no others are known."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        return cls(dist.distributed_c10d._get_default_store())

    def tell(self, failure: str) -> str | None:
        """The failure that was told before this one, if any was."""
        told = self._store.compare_set("failure", "", failure).decode()
        return None if told == failure else told

    def failure(self) -> str | None:
        """What another rank told."""
        return self._store.get("failure").decode() if self._store.check(["failure"]) else None

    def hear(self) -> None:
        """Say that this rank knows of the failure."""
        with self._hearing:
            if not self._heard:
                self._store.add("heard", 1)
            self._heard = True

    def linger(self) -> None:
        """Wait until all ranks know: they would take this one's end for the cause."""
        deadline = time.monotonic() + LINGER_SECONDS
        while time.monotonic() < deadline and self._store.add("heard", 0) <= self._others:
            time.sleep(POLL_SECONDS / 10)


def _arm(seconds: float) -> None:
    """End this process after that time and some grace, also where no thread of Python runs."""
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=STDERR)


def _described(error: BaseException) -> str:
    """A user's fault in its four parts, anything else with its traceback."""
    if isinstance(error, RegscaleError):
        return str(error)
    return "".join(traceback.format_exception(error))[-LONGEST:]


def _say(text: str) -> None:
    """Past Python's own buffers, whose locks a hanging thread may hold."""
    with contextlib.suppress(OSError):
        os.write(STDERR, text.encode())


def _record_nccl(path: Path) -> None:
    """NCCL's flight recorder, for torchfrtrace, where there is one."""
    module = torch._C._distributed_c10d
    dump = getattr(module, "_dump_nccl_trace", None) or getattr(module, "_dump_fr_trace", None)
    if torch.cuda.is_initialized() and dump is not None:
        with contextlib.suppress(OSError, RuntimeError):
            path.write_bytes(dump())
