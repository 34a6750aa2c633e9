"""Files that survive a crash: written whole, synced, renamed; temporary names with an owner."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regscale.checkpoint.format import Phase, no_phase
from regscale.checkpoint.process import Process
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 3600.0

_TEMPORARY = re.compile(r"\.tmp-step-\d+-([0-9a-f]+)-(\d+)-(\d+)-[0-9a-f]+")
_FIXES = {
    errno.ENOSPC: "Free space there, or keep fewer checkpoints.",
    errno.EDQUOT: "Free part of the quota, or keep fewer checkpoints.",
    errno.EFBIG: "Raise the file size limit (ulimit -f), or use more writers.",
    errno.EROFS: "Choose a run folder that can be written.",
    errno.EACCES: "Choose a run folder that this user may write.",
    errno.ENOTDIR: "Choose a run folder that is no file.",
}


@contextmanager
def reported(path: Path, what: str) -> Iterator[None]:
    """Turn an error of the file system into one that a user can read."""
    try:
        yield
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "Check the file system, then try again.")
        found = f"{errno.errorcode.get(error.errno or 0, 'OSError')} ({error.strerror or error})"
        raise RegscaleError(error.filename or path, what, found=found, fix=fix) from error


def write_all(file: BinaryIO, data: memoryview) -> None:
    """Write to an unbuffered file, which may take fewer bytes than it was given."""
    while data:
        data = data[file.write(data) :]


def write_file(path: Path, data: bytes) -> None:
    """Make a file with these bytes, durable when this returns; it must not exist."""
    with open(path, "xb", buffering=0) as file:
        write_all(file, memoryview(data))
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def temporary(root: Path, name: str) -> Path:
    """A name beside `name` that nothing loads and that tells whose it is."""
    me = Process.current()
    token = uuid.uuid4().hex[:8]
    return root / f".tmp-{name}-{me.machine}-{me.pid}-{me.started}-{token}"


def purge(folder: Path, *, phase: Phase = no_phase) -> bool:
    """Delete a checkpoint: it loses its name first, so a kill leaves nothing half loadable.

    Returns whether it lost its name; a failure is only worth a warning.
    """
    doomed = temporary(folder.parent, folder.name.partition(".")[0])
    try:
        folder.rename(doomed)
        sync_folder(folder.parent)
    except OSError as error:
        log.warning("%s: could not be deleted (%s)", folder, error)
        return False
    phase("purge")
    delete(doomed, lambda: phase("deleted"))
    return True


def delete(folder: Path, deleted: Callable[[], None] = lambda: None) -> None:
    """Delete a temporary folder, file by file; what resists is left for the next sweep."""
    try:
        for path in sorted(folder.iterdir()):
            path.unlink()
            deleted()
        folder.rmdir()
    except OSError as error:
        log.warning("%s: could not be deleted (%s); the next save tries again", folder, error)


def sweep(root: Path) -> None:
    """Delete what killed writers left behind; never what a live one is writing."""
    for path in sorted((*root.glob("step-*.replaced"), *root.glob("step-*.damaged"))):
        if path.with_suffix("").exists():
            purge(path)
    for path in sorted(root.glob(".tmp-step-*")):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        owner = Process(match[1], int(match[2]), int(match[3]))
        alive = owner.is_alive()
        if alive is None:
            alive = _quiet_seconds(path) < ABANDONED_SECONDS
        if not alive:
            log.info("%s: deleting what an interrupted save left behind", path)
            shutil.rmtree(path, ignore_errors=True)


def _quiet_seconds(folder: Path) -> float:
    """Time since anything in the folder changed."""
    times = [0.0]
    for path in (folder, *folder.glob("*")):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:  # its owner is deleting it
            return 0.0
    return time.time() - max(times)
