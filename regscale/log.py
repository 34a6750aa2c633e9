"""Logging of commands: on the terminal rank 0 at INFO and the others at WARNING with their rank, in
a run's folder every rank at INFO with the time."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from regscale.cluster import place
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)


def set_up(*, rank: int = 0) -> None:
    """Plain lines on standard error."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.basicConfig(
        level=logging.INFO, format=f"{prefix}%(message)s", handlers=[terminal], force=True
    )
    for chatty in ("httpx", "urllib3", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@contextmanager
def to_file(folder: Path, rank: int) -> Iterator[None]:
    """Within the block a rank's lines also go to the end of `logs/rank-00003.log`.

    A file that cannot be written is told once on the terminal; nothing else depends on it.
    """
    path = folder / "logs" / f"rank-{rank:05d}.log"
    root = logging.getLogger()
    level = root.level
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _File(path)
    except OSError as error:
        _told(path, error)
        yield
        return
    root.setLevel(min(level, logging.INFO))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


class _File(logging.FileHandler):
    """Lines with the time; a full disk is told once, and the lines that do not fit are lost."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setLevel(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            _told(Path(self.baseFilename), error)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # the lines that still were in memory
            if not self._failed:
                _told(Path(self.baseFilename), error)


def _told(path: Path, error: OSError) -> None:
    log.warning("training goes on without lines of %s: %s", path, error.strerror or error)


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command on the process's arguments; a user's fault is one message and status 2."""
    set_up(rank=place().rank)
    try:
        main(sys.argv[1:])
    except RegscaleError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
