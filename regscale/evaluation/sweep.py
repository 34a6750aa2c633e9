"""A search for guidance on a budget: the scale, then its interval, then the scale more finely.

Distances bend once along a scale, so the neighbours of the best one enclose the optimum.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from regscale.errors import RegscaleError

SCALES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
INTERVALS = ((0.0, 1.0), (0.0, 0.8), (0.0, 0.6), (0.2, 1.0), (0.2, 0.8), (0.3, 0.8))


class Guidance(NamedTuple):
    """What is searched; the interval is in times, 0 is data."""

    scale: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One evaluation of a sweep."""

    guidance: Guidance
    distance: float  # FID, or the suite's Fréchet distance
    score: float | None  # IS


Measure = Callable[[Guidance], Point]


def search(
    measure: Measure,
    *,
    budget: int,
    scales: Sequence[float] = SCALES,
    intervals: Sequence[tuple[float, float]] = INTERVALS,
) -> list[Point]:
    """At most `budget` evaluations, in the order in which they were made.

    All scales on the whole interval; all intervals at the best of them; then halves between the
    best scale and its neighbours there, for as long as the budget lasts.
    """
    if budget < 1 or not scales or not intervals:
        raise RegscaleError(
            "sweep", "needs something to try", found=f"a budget of {budget}", fix="Give 1 or more."
        )
    found: dict[Guidance, Point] = {}

    def look(guidance: Guidance) -> bool:
        """Whether the budget allowed it."""
        if guidance not in found:
            if len(found) >= budget:
                return False
            found[guidance] = measure(guidance)
        return True

    for scale in sorted(scales):
        look(Guidance(scale, *intervals[0]))
    for interval in intervals:
        look(Guidance(best(found.values()).guidance.scale, *interval))
    while True:
        count = len(found)
        for guidance in _halves(list(found.values())):
            look(guidance)
        if len(found) in (count, budget):
            return list(found.values())


def best(points: Iterable[Point]) -> Point:
    """Of the smallest distance."""
    return min(points, key=lambda point: point.distance)


def _halves(points: Sequence[Point]) -> Iterator[Guidance]:
    """Between the best scale and its neighbours, at the best interval; down to 0.05 apart."""
    at = best(points).guidance
    for side in (-1, 1):
        beyond = [p.guidance.scale for p in points if (p.guidance.scale - at.scale) * side > 0]
        if beyond:
            near = min(beyond, key=lambda scale: abs(scale - at.scale))
            if abs(near - at.scale) >= 0.1:
                yield Guidance(round((near + at.scale) / 2, 4), at.low, at.high)
