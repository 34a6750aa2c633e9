"""Says in the background that this process still writes to its run, however long a step takes."""

import logging
import threading
from types import TracebackType

from regscale.checkpoint import Lease, LeaseLost
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

SECONDS = 30.0


class Heartbeat:
    """Beats a lease until the end of the block."""

    def __init__(self, lease: Lease, *, seconds: float = SECONDS) -> None:
        self._lease, self._seconds = lease, seconds
        self._done = threading.Event()
        self.lost: RegscaleError | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def check(self) -> None:
        """Raise if another process has taken the run over: this one must not write again."""
        if self.lost is not None:
            raise self.lost
        self._lease.check()

    def _beat(self) -> None:
        while not self._done.wait(self._seconds):
            try:
                self._lease.beat()
            except LeaseLost as error:
                self.lost = error
                return
            except RegscaleError as error:  # a full or slow disk may recover
                log.warning("%s", error)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
