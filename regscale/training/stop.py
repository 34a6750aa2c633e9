"""A wish to stop, noticed at the next step boundary."""

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FILE = 1_000  # beyond the numbers of signals
ORPHANED = 1_001
LOOK_SECONDS = 1.0  # between two looks for the file, which may lie on a slow disk


class StopFlag:
    """Signal handlers that only set a flag, and a file whose appearance means the same.

    A second SIGINT interrupts at once. The end of torchrun is a wish to stop as well: it takes no
    rank along where it is killed, or meets a signal that it does not know, such as SIGUSR1.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._looked = file, float("-inf")
        self._wish = 0
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._before: dict[signal.Signals, object] = {}

    @property
    def wish(self) -> int:
        """0, the signal's number, FILE or ORPHANED."""
        if not self._wish and self._launcher not in (None, os.getppid()):
            self._wish = ORPHANED
        now = time.monotonic()
        if not self._wish and self._file is not None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._wish = FILE if self._file.exists() else 0
        return self._wish

    @property
    def reason(self) -> str | None:
        return reason(self.wish)

    def __enter__(self) -> "StopFlag":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _set(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._wish = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def reason(wish: int) -> str | None:
    """A wish in words, as the marker has it: `SIGTERM`, `stop file`."""
    if wish == 0:
        return None
    words = {FILE: "stop file", ORPHANED: "the launcher is gone"}
    return words.get(wish) or signal.Signals(wish).name
