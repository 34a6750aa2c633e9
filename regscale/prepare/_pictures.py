"""Pictures of any origin to the bytes of a shard: upright, cut or resized, in one format."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from regscale.data._crop import shrink
from regscale.data._images import decode, opened, refuse_line

Cut = Literal["centre", "resize", "none"]

FIELDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # PIL's names and those of a shard


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
            return self.format, self.encoded(Image.fromarray(pixels))
        picture, kind = opened(payload)
        if self.format == "keep":
            return FIELDS[kind], payload
        if self.crop == "resize":  # a centre crop of the result is ADM's centre crop
            refuse_line(picture)
            picture = shrink(picture, self.size)
        return self.format, self.encoded(picture)

    def encoded(self, picture: Image.Image) -> bytes:
        """The bytes of a picture in this format."""
        file = io.BytesIO()
        if self.format == "jpg":  # full colour resolution: a model learns what the codec leaves
            picture.save(file, "JPEG", quality=self.quality, subsampling=0)
        elif self.format == "webp":
            picture.save(file, "WEBP", quality=self.quality)
        else:
            picture.save(file, "PNG")
        return file.getvalue()
