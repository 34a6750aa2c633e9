"""Time grids of the solvers with fixed steps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import sub
from typing import NamedTuple

from regscale.config import Invalid
from regscale.types import LeafFloats


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsConfig:
    """A number of steps of all leaves together: where tokens come first, both share it."""

    num_steps: int = 250

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise Invalid("num_steps", "is positive", found=self.num_steps, fix="Give 1 or more.")


class Step(NamedTuple):
    """From times to times. A leaf that stands still has the difference 0."""

    start: LeafFloats
    stop: LeafFloats
    difference: LeafFloats


def steps(times: Iterable[LeafFloats]) -> Iterator[Step]:
    """Between each two. The differences of a leaf sum to the way it goes, wherever it starts or
    ends to move within a step."""
    for start, stop in pairwise(times):
        yield Step(start, stop, stop.zip(start, sub))
