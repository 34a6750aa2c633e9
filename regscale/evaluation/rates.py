"""Shares of pictures that are right, with 95% intervals."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

Z = 1.959963984540054  # of a 95% interval


class Rate(NamedTuple):
    """A share and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(num_right: int, number: int) -> Rate:
    """The share and Wilson's score interval (1927)."""
    assert number > 0, "a share of something"
    share, extra = num_right / number, Z**2 / number
    middle = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * sqrt(share * (1 - share) / number + extra / (4 * number))
    return Rate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def combined(rates: Sequence[Rate], weights: Sequence[float]) -> Rate:
    """A weighted sum of independent shares; its interval recovers variances from theirs (Zou and
    Donner 2008)."""
    value = below = above = 0.0
    for rate, weight in zip(rates, weights, strict=True):
        low, high = rate.value - rate.low, rate.high - rate.value
        down, up = (low, high) if weight >= 0 else (high, low)
        value += weight * rate.value
        below += (weight * down) ** 2
        above += (weight * up) ** 2
    return Rate(value, value - sqrt(below), value + sqrt(above))


def mean(rates: Sequence[Rate]) -> Rate:
    """Of kinds, all of one weight."""
    total = combined(rates, [1] * len(rates))
    return Rate(*(each / len(rates) for each in total))
