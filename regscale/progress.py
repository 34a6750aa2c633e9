"""How far a long piece of work is: a bar on a terminal, elsewhere lines now and then, by rank 0."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from tqdm import tqdm

from regscale.cluster import place

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0  # between two lines where there is no terminal
Advance = Callable[[int], None]  # so many more units are done


@contextmanager
def progress(total: int | None, *, what: str, unit: str) -> Iterator[Advance]:
    """Around work of `total` units, if that is known."""
    shown, done, told = place().rank == 0, 0, monotonic()
    of = "" if total is None else f" of {total:,}"
    with tqdm(total=total, desc=what, unit=f" {unit}", disable=None if shown else True) as bar:

        def advance(number: int) -> None:
            nonlocal done, told
            bar.update(number)
            done += number
            if shown and bar.disable and monotonic() - told >= LINE_SECONDS:
                told = monotonic()
                log.info("%s: %s%s %s", what, f"{done:,}", of, unit)

        yield advance
