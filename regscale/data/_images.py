"""Pictures of any origin to uint8 images of one size: by their content, never by their names."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from regscale.data._crop import centre_crop, cut, shrink, sides
from regscale.data._size import Size

Crop = Literal["none", "centre", "random"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of the files that a folder is searched for
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 27  # a picture that claims more is refused before it is decoded
ORIENTATION = 0x0112  # the tag of EXIF
LINE = 64  # a picture so many times as long as it is wide is all but a line
MIN_SHARE = 0.8  # of the short side that a random crop keeps (ADM)


class Unusable(ValueError):
    """A field whose content is not what it should be."""


class Misfit(Unusable):
    """A picture of another size, where none is to be cropped."""


def is_picture(name: str) -> bool:
    """Whether a file is listed; what it is, its content says when it is read."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(SUFFIXES) and not base.startswith(".")


def decode(
    payload: bytes | memoryview,
    size: int | Size,
    *,
    crop: Crop,
    chance: tuple[float, float, float],
) -> Tensor:
    """A (3, height, width) uint8 image, an int being the side of a square; `chance` are the
    uniform numbers of a random crop, which is a square's."""
    picture, _ = opened(payload)
    height, width = sides(size)
    if crop != "random" and picture.size == (width, height):
        return cut(picture, 0, 0, size)
    if crop == "none":
        found = f"a picture of {picture.width} x {picture.height} pixels, not {width} x {height}"
        raise Misfit(f"{found}, and nothing is to crop it")
    refuse_line(picture)
    if crop == "centre":
        return centre_crop(picture, size)
    assert height == width, "a source refuses random crops of rectangles"
    return _random_crop(picture, height, chance)


def opened(payload: bytes | memoryview) -> tuple[Image.Image, str]:
    """A whole picture, upright RGB, and PIL's name of its format."""
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Unusable(f"a picture of {picture.width:,} x {picture.height:,} pixels")
            return upright(picture), str(picture.format)
    except Unusable:
        raise
    except UnidentifiedImageError as error:
        raise Unusable("no JPEG, PNG or WebP picture") from error
    except Image.DecompressionBombError as error:
        raise Unusable("a picture with too many pixels") from error
    except Exception as error:  # decoders raise what they like on damaged files
        raise Unusable(f"a damaged picture ({error or type(error).__name__})") from error


def upright(picture: Image.Image) -> Image.Image:
    """RGB of 8 bits, turned as EXIF says."""
    picture.load()
    straight = picture.getexif().get(ORIENTATION, 1) == 1
    turned = picture if straight else ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I"):  # grey of 16 bits, which `convert` would clip
        grey = np.asarray(turned).astype(np.int64)
        turned = Image.fromarray(((grey + 128) // 257).clip(0, 255).astype(np.uint8))
    return turned if turned.mode == "RGB" else turned.convert("RGB")


def refuse_line(picture: Image.Image) -> None:
    """Resized by its short side, such a picture would take any amount of memory."""
    if min(picture.size) * LINE < max(picture.size):
        raise Unusable(f"a picture of {picture.width} x {picture.height} pixels: all but a line")


def _random_crop(picture: Image.Image, size: int, chance: tuple[float, float, float]) -> Tensor:
    """ADM's random crop (arXiv 2105.05233): the short side resized to 1 to 1.25 of the square."""
    largest = int(np.ceil(size / MIN_SHARE))
    short = size + int(chance[0] * (largest - size + 1))
    resized = shrink(picture, short)
    top = int(chance[1] * (resized.height - size + 1))
    left = int(chance[2] * (resized.width - size + 1))
    return cut(resized, top, left, size)
