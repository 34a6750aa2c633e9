"""Who a process is, so that another one can tell whether it still runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import xxhash


@dataclass(frozen=True, slots=True)
class Process:
    """A process; `started` tells it from a later one with the same pid."""

    machine: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Process:
        return cls(_machine(), os.getpid(), _started(os.getpid()) or 0)

    def is_alive(self) -> bool | None:
        """None where it cannot be known: the process belongs to another machine or container."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        started = _started(self.pid)
        return started is None or started == self.started


def _machine() -> str:
    """Host, boot and pid namespace: where a pid has one meaning."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    except OSError:  # not Linux: the host's name must do
        pass
    return xxhash.xxh3_64_hexdigest("\n".join(parts).encode())


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; -1 for a zombie, None if it is hidden."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])
