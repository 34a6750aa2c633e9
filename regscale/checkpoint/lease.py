"""One writer for one run: a file that says who writes, and until when that is believed."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from regscale.checkpoint.files import reported
from regscale.checkpoint.process import Process
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

NAME = "lease.json"
STALE_SECONDS = 300.0


class LeaseLost(RegscaleError):
    """Another process writes to this run: this one must stop."""


class Lease:
    """The right to write to a run folder, held until `release`; also a context manager."""

    def __init__(self, path: Path, descriptor: int, facts: dict[str, Any]) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        self._facts, self._lock = facts, threading.Lock()

    @classmethod
    def acquire(
        cls,
        run_folder: Path,
        *,
        job: str = "",
        restarts: int = 0,
        stale_seconds: float = STALE_SECONDS,
    ) -> Lease:
        """Take the run folder, or raise an error that says who holds it.

        A lease is taken over, with a warning, if its process is dead, if it belongs to an earlier
        restart of the same job, or if it had no heartbeat for `stale_seconds`.
        """
        facts = _facts(job, restarts)
        path = run_folder / NAME
        with reported(path, "the run folder could not be taken"):
            run_folder.mkdir(parents=True, exist_ok=True)
            return cls(path, _take(path, facts, stale_seconds), facts)

    def beat(self) -> None:
        """Say that this process still writes, several times in `stale_seconds`. From any thread.

        Raises where another one has taken over.
        """
        facts = {**self._facts, "heartbeat": time.time()}
        with self._lock, reported(self.path, "the heartbeat could not be written"):
            assert self._descriptor is not None, "a released lease has no heartbeat"
            # To the file that was made, not to the name: that may be another one's.
            os.pwrite(self._descriptor, _encode(facts), 0)
            os.fsync(self._descriptor)
        self.check()

    def check(self) -> None:
        """Raise where another process has taken over: this one must not write again."""
        with reported(self.path, "the lease could not be read"):
            holder = _read(self.path)
        if holder.get("token") != self._facts["token"]:
            raise LeaseLost(
                self.path,
                "another process has taken over this run",
                found=_describe(holder),
                fix="This one stops; if it is the right one, end the other and start again.",
            )

    def release(self) -> None:
        """Give the run folder back; harmless where another one has taken it."""
        with self._lock, reported(self.path, "the lease could not be given back"):
            if self._descriptor is None:
                return
            os.close(self._descriptor)
            self._descriptor = None
            claim = _claim_name(self.path, self._facts)
            try:
                os.close(_create(claim, self._facts))
            except FileExistsError:  # another one is taking over
                return
            if _read(self.path).get("token") == self._facts["token"]:
                self.path.unlink()
            claim.unlink()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.release()
        except RegscaleError as error:  # no reason to fail a run that is over
            log.warning("%s", error)


def _take(path: Path, facts: dict[str, Any], stale_seconds: float) -> int:
    """Put these facts at `path` and return its descriptor.

    A dead lease is replaced by whoever makes the claim file with the dead one's token in its
    name. A claim whose maker died is taken over in the same way, hence the recursion.
    """
    try:
        return _create(path, facts)
    except FileExistsError:
        holder = _read(path)
    if not holder:  # given back in between
        return _take(path, facts, stale_seconds)
    reason = _reason_to_take(holder, facts, stale_seconds)
    if reason is None:
        raise _refusal(path, holder)
    claim = _claim_name(path, holder)
    descriptor = _take(claim, facts, stale_seconds)
    if _read(path) == holder:
        with suppress(FileNotFoundError):  # this one slept, and its claim was taken over
            os.replace(claim, path)
    else:  # another one made the same claim and was done before
        claim.unlink()
    winner = _read(path)
    if winner.get("token") != facts["token"]:
        os.close(descriptor)
        raise _refusal(path, winner)
    log.warning("%s: took over from %s: %s", path, _describe(holder), reason)
    return descriptor


def _reason_to_take(
    holder: dict[str, Any], mine: dict[str, Any], stale_seconds: float
) -> str | None:
    age = time.time() - holder["heartbeat"]
    if Process(holder["machine"], holder["pid"], holder["started"]).is_alive() is False:
        return "that process is dead"
    if mine["job"] and holder["job"] == mine["job"] and holder["restarts"] < mine["restarts"]:
        return f"that was restart {holder['restarts']} of this job"
    if age > stale_seconds:
        return f"its last heartbeat was {age:.0f} s ago"
    return None


def _facts(job: str, restarts: int) -> dict[str, Any]:
    me = Process.current()
    return {
        "job": job,
        "restarts": restarts,
        "host": socket.gethostname(),
        "machine": me.machine,
        "pid": me.pid,
        "started": me.started,
        "token": uuid.uuid4().hex[:8],
        "heartbeat": time.time(),
    }


def _claim_name(path: Path, holder: dict[str, Any]) -> Path:
    return path.with_name(f"{path.name}.{holder['token']}")


def _encode(facts: dict[str, Any]) -> bytes:
    """Always of one length, so that a heartbeat overwrites the one before in a single write."""
    return json.dumps(facts).encode().ljust(1024)


def _create(path: Path, facts: dict[str, Any]) -> int:
    """Make the file, or raise FileExistsError; return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, _encode(facts))
        os.fsync(descriptor)
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


def _read(path: Path) -> dict[str, Any]:
    """The facts of a lease, empty where there is none."""
    for _ in range(20):
        try:
            facts: dict[str, Any] = json.loads(path.read_bytes())
            return facts
        except FileNotFoundError:
            return {}
        except ValueError:  # its maker has not yet written it
            time.sleep(0.05)
    unknown = {"job": "", "restarts": 0, "host": "an unknown host", "machine": "", "pid": 0}
    beat = path.stat().st_mtime
    return {**unknown, "started": 0, "token": "unreadable", "heartbeat": beat}


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "no lease at all"
    job = f"job {holder['job']} (restart {holder['restarts']}), " if holder["job"] else ""
    age = time.time() - holder["heartbeat"]
    return f"{job}pid {holder['pid']} on {holder['host']}, heartbeat {age:.0f} s ago"


def _refusal(path: Path, holder: dict[str, Any]) -> RegscaleError:
    return RegscaleError(
        path,
        "another process writes to this run",
        found=_describe(holder),
        fix="Wait until it has ended, end it, or choose another run folder.",
    )
