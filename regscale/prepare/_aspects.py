"""Sizes of about one area and many aspects, and which of them a picture comes nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from regscale.data import Size, size_of, spelled
from regscale.errors import RegscaleError


def sizes_of_area(side: int, *, step: int, max_aspect: float) -> list[Size]:
    """All sizes of multiples of `step` that lie just within the area of a square of `side`."""
    found = set()
    for short in range(step, side + 1, step):
        long = side * side // short // step * step
        if long <= max_aspect * short:
            found |= {(short, long), (long, short)}
    return sorted(found)


def sizes_of_list(text: str) -> list[Size]:
    """Of `512x512,576x448`; refused where two of them have one aspect, so that none is chosen."""
    found = [(each, size_of(each)) for each in text.split(",")]
    sizes = [size for _, size in found if size is not None]
    aspects = {height / width for height, width in sizes}
    if len(sizes) < len(found) or len(aspects) < len(sizes):
        raise RegscaleError(
            "buckets: --sizes",
            "are HEIGHTxWIDTH of different aspects, joined by commas",
            found=repr(text),
            fix="Try 512x512,576x448,448x576.",
        )
    return sorted(sizes)


def nearest_aspect(size: Size, sizes: Sequence[Size]) -> Size:
    """Of sorted sizes the one whose aspect differs by the smallest factor; of two the first."""
    aspect = log(size[0] / size[1])
    return min(sizes, key=lambda each: abs(log(each[0] / each[1]) - aspect))


def named(sizes: Sequence[Size]) -> str:
    return ", ".join(map(spelled, sizes))
