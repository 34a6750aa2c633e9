"""Logging of commands: rank 0 at INFO, the others at WARNING with their rank."""

import logging
import sys
from collections.abc import Callable

from regscale.errors import RegscaleError


def set_up(*, rank: int = 0) -> None:
    """Plain lines on standard error."""
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"{prefix}%(message)s",
        stream=sys.stderr,
        force=True,
    )
    for chatty in ("httpx", "urllib3", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command on the process's arguments; a user's fault is one message and status 2."""
    set_up()
    try:
        main(sys.argv[1:])
    except RegscaleError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
