"""What ShapeCaps draws: five shapes in eight colours on a grey canvas, and how two of them lie.

A box is (top, left, bottom, right) in pixels of the 32 x 32 canvas, the last two beyond its end.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

CANVAS = 32  # pixels of a side; larger pictures double each pixel
GREY = 128  # of the background
SHAPES = ("circle", "square", "triangle", "cross", "diamond")
COLOURS = {
    "black": (0, 0, 0),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
}
RELATIONS = ("left", "right", "above", "below")  # of the first thing to the second
BITS = {relation: 1 << place for place, relation in enumerate(RELATIONS)}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}

SPACE = 2  # pixels between the squares of two figures
BORDER = 1  # pixels between a figure's square and the border
BLOCKED = 16  # in `offsets`: the two are nearer than SPACE; below it are sums of BITS

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Codes = np.ndarray[Any, np.dtype[np.uint8]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Box = tuple[int, int, int, int]


class Figure(NamedTuple):
    """A shape on the canvas; it is drawn within the square of `size` pixels at `top`, `left`."""

    shape: str
    colour: str
    size: int
    top: int
    left: int

    @property
    def box(self) -> Box:
        """Of its own pixels: the tip of an even triangle is a row below its square's top."""
        top, left, bottom, right = trimmed(self.shape, self.size)
        return self.top + top, self.left + left, self.top + bottom, self.left + right


@cache
def mask(shape: str, height: int, width: int) -> Mask:
    """A shape that fills (height, width); drawn figures are square. All numbers are whole, so that
    no pixel on an edge depends on rounding."""
    h, w = height, width
    y = np.arange(h)[:, None]
    dx, dy = np.abs(2 * np.arange(w)[None] - (w - 1)), np.abs(2 * y - (h - 1))  # half pixels
    if shape == "circle":  # (dx / w)^2 + (dy / h)^2 <= 1
        made = (dx * h) ** 2 + (dy * w) ** 2 <= (h * w) ** 2
    elif shape == "square":
        made = np.ones((h, w), dtype=np.bool_)
    elif shape == "triangle":  # dx / 2 <= (y + 1 / 2) / 2, as wide as high
        made = 2 * dx * h <= (2 * y + 1) * w
    elif shape == "cross":
        made = _bar(h)[:, None] | _bar(w)[None]
    else:
        assert shape == "diamond", "one of SHAPES"  # dx / w + dy / h <= 1 + 1 / side
        made = (dx * h + dy * w) * (h + w) <= h * w * (h + w + 2)
    made.flags.writeable = False
    found: Mask = made
    return found


def _bar(side: int) -> Mask:
    """A third of the side, in the middle."""
    width = round(side / 3)
    start = (side - width) // 2
    places = np.arange(side)
    made: Mask = (places >= start) & (places < start + width)
    return made


@cache
def trimmed(shape: str, size: int) -> Box:
    """The box of a shape's pixels within its square."""
    drawn = mask(shape, size, size)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def draw(figures: tuple[Figure, ...], picture: Pixels) -> None:
    """The figures into a (3, 32, 32) picture."""
    picture.fill(GREY)
    for shape, colour, size, top, left in figures:
        square = picture[:, top : top + size, left : left + size]
        np.copyto(square, _ink(colour), where=mask(shape, size, size))


@cache
def _ink(colour: str) -> Pixels:
    return np.array(COLOURS[colour], dtype=np.uint8)[:, None, None]  # (3, 1, 1)


def enlarged(pictures: Pixels, side: int) -> Pixels:
    """(..., 32, 32) with each pixel doubled until a side has `side`."""
    factor = side // CANVAS
    return pictures.repeat(factor, -2).repeat(factor, -1) if factor > 1 else pictures


def relations(first: Box, second: Box) -> int:
    """How the first lies to the second by GenEval's rule (2310.11513, `relative_position`), BITS.

    Centres, less a tenth of the summed sides, in units of their distance: what is above 0.5 holds.
    """
    (a, b, c, d), (e, f, g, h) = first, second
    dy, dx = (a + c - e - g) / 2, (b + d - f - h) / 2
    return _cached_bits(dy, dx, c - a + g - e, d - b + h - f)


@lru_cache(maxsize=1 << 16)
def _cached_bits(dy: float, dx: float, heights: int, widths: int) -> int:
    return int(_bits(dy, dx, heights, widths))


def _bits(dy: Any, dx: Any, heights: int, widths: int) -> Any:
    """`relations` of offsets of the first's centre from the second's, each a number or array."""
    distance = np.hypot(dy, dx) + 1e-9  # centres that coincide have no relation
    down = np.sign(dy) * np.maximum(np.abs(dy) - 0.1 * heights, 0) / distance
    right = np.sign(dx) * np.maximum(np.abs(dx) - 0.1 * widths, 0) / distance
    return 1 * (right < -0.5) + 2 * (right > 0.5) + 4 * (down < -0.5) + 8 * (down > 0.5)


@cache
def offsets(first: tuple[str, int], second: tuple[str, int]) -> Codes:
    """(63, 63): how the first (shape, size) lies to the second, by offsets of the second's square
    from the first's, -31 to 31; BLOCKED where they are too near."""
    steps = np.arange(1 - CANVAS, CANVAS)
    dy, dx = steps[:, None], steps[None]
    (a, b, c, d), (e, f, g, h) = trimmed(*first), trimmed(*second)
    down, right = (a + c - e - g) / 2 - dy, (b + d - f - h) / 2 - dx
    made = _bits(down, right, c - a + g - e, d - b + h - f).astype(np.uint8)
    before, after = second[1] + SPACE, first[1] + SPACE
    made[(dy > -before) & (dy < after) & (dx > -before) & (dx < after)] = BLOCKED
    found: Codes = made
    return found
