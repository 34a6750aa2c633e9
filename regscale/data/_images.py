"""Pictures of any origin to uint8 squares: by their content, never by their names."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from regscale.data._crop import centre_crop, cut, shrink

Crop = Literal["none", "centre", "random"]

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 27  # a picture that claims more is refused before it is decoded
MIN_SHARE = 0.8  # of the short side that a random crop keeps (ADM)


class Unusable(ValueError):
    """A field whose content is not what it should be."""


def decode(
    payload: bytes | memoryview, size: int, *, crop: Crop, chance: tuple[float, float, float]
) -> Tensor:
    """A (3, size, size) uint8 image; `chance` are the uniform numbers of a random crop."""
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Unusable(f"a picture of {picture.width:,} x {picture.height:,} pixels")
            return _square(upright(picture), size, crop=crop, chance=chance)
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
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I"):  # grey of 16 bits, which `convert` would clip
        grey = np.asarray(turned).astype(np.int64)
        turned = Image.fromarray(((grey + 128) // 257).clip(0, 255).astype(np.uint8))
    return turned.convert("RGB")


def _square(
    picture: Image.Image, size: int, *, crop: Crop, chance: tuple[float, float, float]
) -> Tensor:
    if picture.size == (size, size) and crop != "random":
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if crop == "none":
        found = f"a picture of {picture.width} x {picture.height} pixels, not {size} x {size}"
        raise Unusable(f"{found}, and data.crop is none")
    if min(picture.size) * 64 < max(picture.size):
        raise Unusable(f"a picture of {picture.width} x {picture.height} pixels: all but a line")
    return centre_crop(picture, size) if crop == "centre" else _random_crop(picture, size, chance)


def _random_crop(picture: Image.Image, size: int, chance: tuple[float, float, float]) -> Tensor:
    """ADM's random crop (arXiv 2105.05233): the short side resized to 1 to 1.25 of the square."""
    largest = int(np.ceil(size / MIN_SHARE))
    short = size + int(chance[0] * (largest - size + 1))
    pixels = shrink(picture, short)
    top = int(chance[1] * (pixels.shape[0] - size + 1))
    left = int(chance[2] * (pixels.shape[1] - size + 1))
    return cut(pixels, top, left, size)
