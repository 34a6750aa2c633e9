"""How far a long piece of work is: a bar on a terminal, elsewhere lines now and then, by rank 0."""

import logging
from time import monotonic
from types import TracebackType

from tqdm import tqdm

from regscale.cluster import place

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0  # between two lines where there is no terminal


class Progress:
    """A context manager around work of `total` units, if that is known."""

    def __init__(self, total: int | None, *, what: str, unit: str) -> None:
        shown = place().rank == 0
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=None if shown else True)
        self._tells_lines = shown and self._bar.disable
        self._what, self._unit, self._total, self._done = what, unit, total, 0
        self._told = monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, number: int = 1) -> None:
        """So many more units are done."""
        self._bar.update(number)
        self._done += number
        if self._tells_lines and monotonic() - self._told >= LINE_SECONDS:
            self._told = monotonic()
            of = "" if self._total is None else f" of {self._total:,}"
            log.info("%s: %s%s %s", self._what, f"{self._done:,}", of, self._unit)
