"""Suites: which images are drawn, and what is measured on them.

A kind is a file here with `Config` and `build(config) -> Suite`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from regscale.evaluation.collecting import Place
from regscale.evaluation.metrics import Figure
from regscale.evaluation.pictures import Pictures
from regscale.sampling.many import Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Figures, and what a table of them cannot say."""

    figures: Sequence[Figure]
    text: str = ""


class Asked(Protocol):
    """What is drawn, in words."""

    @property
    def labels(self) -> str:
        """The scheme of the labels, or the captions with the hash of their file."""
        ...

    @property
    def seeds(self) -> str:
        """Of the images."""
        ...


class Suite(Asked, Protocol):
    """What is asked of a run, and how the answer is judged."""

    def wanted(self, num_classes: int | None) -> list[Wanted]:
        """The images to draw, in their order."""
        ...

    def measure(self, pictures: Pictures, place: Place) -> Outcome:
        """Judge pictures that lie in the order of `wanted`. Collective."""
        ...
