"""Sizes of pictures as a user writes them, and which of them a model can draw.

A side is a multiple of `unit`, the pixels that a patch of latents covers.
"""

import re
from math import sqrt

from regscale.errors import RegscaleError

Size = tuple[int, int]  # height and width in pixels


def size_of(text: str, unit: int) -> Size:
    """Of `512x768`, height first; other than whole patches it is refused, and the nearest named."""
    written = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().casefold())
    if written is None:
        raise RegscaleError(
            "--size", "is HEIGHTxWIDTH in pixels", found=repr(text), fix="Try --size 512x768."
        )
    size = int(written[1]), int(written[2])
    nearest = _whole(*size, unit)
    if size != nearest:
        raise RegscaleError(
            f"--size {text}",
            f"has sides that are multiples of {unit} pixels, which a patch of this model covers",
            found=text,
            fix=f"The nearest size is {written_size(nearest)}.",
        )
    return size


def size_of_aspect(text: str, like: Size, unit: int) -> Size:
    """Of `3:2`, width first: the size of whole patches with about as many pixels as `like`."""
    written = re.fullmatch(r"(\d*\.?\d+):(\d*\.?\d+)", text.strip())
    if written is None or not float(written[1]) * float(written[2]):
        raise RegscaleError(
            "--aspect", "is WIDTH:HEIGHT", found=repr(text), fix="Try --aspect 3:2."
        )
    area, ratio = like[0] * like[1], float(written[1]) / float(written[2])
    return _whole(sqrt(area / ratio), sqrt(area * ratio), unit)


def written_size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _whole(height: float, width: float, unit: int) -> Size:
    return max(1, round(height / unit)) * unit, max(1, round(width / unit)) * unit
