"""Finds ShapeCaps' figures in pictures: nearest colours, connected areas, and five templates.

B pictures, H W their sides. Lengths are of pictures with 32 pixels a side and grow with H.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from torch import Tensor

from regscale.data._shapes import CANVAS, COLOURS, GREY, SHAPES, Box, Mask, Pixels, mask

MIN_AREA = 16  # pixels of a component; anything smaller is overlooked
MIN_SIDE = 7  # of the longer side: without it a single 4 x 4 patch of noise would be a square
MIN_ASPECT = 0.7  # shorter by longer side
MIN_OVERLAP = 0.72  # intersection over union with the best template

CHUNK = 256  # pictures at a time, which bounds the memory
BACKGROUND = len(COLOURS)
NAMES = tuple(COLOURS)


class Component(NamedTuple):
    """A connected area of one colour; no shape fits where `shape` is empty."""

    shape: str
    colour: str
    box: Box
    overlap: float


def detect(images: Tensor) -> list[list[Component]]:
    """The components of each of (B, 3, H, W) uint8 pictures, those that fit best first."""
    assert images.shape[1:2] == (3,), "(B, 3, H, W): pictures in RGB"
    assert images.shape[2] % CANVAS == 0, "32 pixels a side, or doubled"
    pixels = images.cpu().numpy()
    assert pixels.dtype == np.uint8, "0 to 255"
    chunks = [pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK)]
    return [found for chunk in chunks for found in _detect(chunk)]


def nearest_colours(images: Pixels) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(B, H, W): the place of the nearest colour in COLOURS, or BACKGROUND."""
    nearer = _nearer()[images].sum(1)
    corners = (images >= 128).astype(np.uint8)
    code = 4 * corners[:, 0] + 2 * corners[:, 1] + corners[:, 2]
    found: np.ndarray[Any, np.dtype[np.uint8]] = np.where(nearer > 0, _corners()[code], BACKGROUND)
    return found


@cache
def _nearer() -> np.ndarray[Any, np.dtype[np.int32]]:
    """(256,) by how much a value is nearer to the end of its axis than to grey, squared."""
    values = np.arange(256, dtype=np.int32)
    found: np.ndarray[Any, np.dtype[np.int32]] = (values - GREY) ** 2 - np.minimum(
        values, 255 - values
    ) ** 2
    return found


@cache
def _corners() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(8,) the place in COLOURS of each corner of the cube, numbered by its bits."""
    order = np.empty(len(COLOURS), dtype=np.uint8)
    for place, (red, green, blue) in enumerate(COLOURS.values()):
        order[(4 * red + 2 * green + blue) // 255] = place
    return order


def _detect(images: Pixels) -> list[list[Component]]:
    B, _, H, W = images.shape
    colours = nearest_colours(images)
    # One tall sheet of all colours and pictures; an empty row keeps neighbours apart.
    sheet = np.zeros((len(COLOURS), B, H + 1, W), dtype=np.bool_)
    sheet[:, :, :H] = colours == np.arange(len(COLOURS), dtype=np.uint8)[:, None, None, None]
    labelled, _ = ndimage.label(sheet.reshape(-1, W))  # its default is 4-connected
    large = np.bincount(labelled.ravel()) >= MIN_AREA * (H / CANVAS) ** 2
    large[0] = False  # what is in no component
    labelled = np.where(large, large.cumsum(), 0).astype(np.int32)[labelled]
    found: list[list[Component]] = [[] for _ in range(B)]
    for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), 1):
        place, top = divmod(rows.start, H + 1)
        colour, picture = divmod(place, B)
        shape, overlap = _best(labelled[rows, columns] == number, H)
        box = (top, columns.start, top + rows.stop - rows.start, columns.stop)
        found[picture].append(Component(shape, NAMES[colour], box, overlap))
    return [sorted(each, key=lambda one: -one.overlap) for each in found]


def _best(area: Mask, height: int) -> tuple[str, float]:
    """(the shape that fits an area in its box, the overlap); no shape below the bounds."""
    short, long = sorted(area.shape)
    if not MIN_SIDE * height <= long * CANVAS <= height * CANVAS / 2 or short < MIN_ASPECT * long:
        return "", 0.0
    templates, sizes = _templates(*area.shape, height // CANVAS)
    cells = area.ravel()
    both = templates @ cells.astype(np.float32)
    overlaps = both / (sizes + np.count_nonzero(cells) - both)
    best = int(overlaps.argmax())
    overlap = float(overlaps[best])
    return (SHAPES[best] if overlap >= MIN_OVERLAP else ""), overlap


@cache
def _templates(height: int, width: int, factor: int) -> tuple[Any, Any]:
    """(the five shapes in such a box as rows of 0 and 1, their areas).

    They have the steps of pictures with 32 pixels a side, as the doubled figures do.
    """
    small = max(1, round(height / factor)), max(1, round(width / factor))
    rows = np.arange(height) * small[0] // height
    columns = np.arange(width) * small[1] // width
    drawn = [mask(shape, *small)[rows[:, None], columns].ravel() for shape in SHAPES]
    stacked = np.stack(drawn).astype(np.float32)
    return stacked, stacked.sum(1)
