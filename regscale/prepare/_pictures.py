"""Pictures of any origin to the bytes of a shard: upright, cut or resized, in one format."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image, UnidentifiedImageError

from regscale.data._images import FORMATS, MAX_PIXELS, Unusable, decode, upright

Cut = Literal["centre", "resize", "none"]

FIELDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # PIL's names and those of a shard
LINE = 64  # a picture so many times as long as it is wide is all but a line


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What becomes of a picture. `format` "keep": the bytes as they are, only with crop none."""

    size: int
    crop: Cut
    format: str  # jpg, png, webp or keep
    quality: int  # of jpg and webp, 1 to 100

    def shaped(self, payload: bytes) -> tuple[str, bytes]:
        """(field, bytes) of a picture in a shard; raises `Unusable` for a damaged one."""
        if self.crop == "centre":
            numbers = (0.0, 0.0, 0.0)  # of a random crop
            square = decode(payload, self.size, crop="centre", chance=numbers)
            pixels = square.permute(1, 2, 0).contiguous().numpy()
            return self.format, self._encoded(Image.fromarray(pixels))
        picture, kind = opened(payload)
        if self.format == "keep":
            return FIELDS[kind], payload
        resized = short_side(picture, self.size) if self.crop == "resize" else picture
        return self.format, self._encoded(resized)

    def _encoded(self, picture: Image.Image) -> bytes:
        file = io.BytesIO()
        if self.format == "jpg":  # full colour resolution: a model learns what the codec leaves
            picture.save(file, "JPEG", quality=self.quality, subsampling=0)
        elif self.format == "webp":
            picture.save(file, "WEBP", quality=self.quality)
        else:
            picture.save(file, "PNG")
        return file.getvalue()


def opened(payload: bytes) -> tuple[Image.Image, str]:
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


def short_side(picture: Image.Image, size: int) -> Image.Image:
    """ADM's resizing without its cut: a centre crop of the result is the centre crop."""
    if min(picture.size) * LINE < max(picture.size):
        raise Unusable(f"a picture of {picture.width} x {picture.height} pixels: all but a line")
    while min(picture.size) >= 2 * size:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, resample=Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(sides, resample=Image.Resampling.BICUBIC)
