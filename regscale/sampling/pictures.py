"""Images as PNG files that say how they were made, and grids of them."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from regscale.errors import RegscaleError

MIN_SIDE = 48  # pixels; smaller images are enlarged in grids


def to_picture(image: Tensor) -> Image.Image:
    """A (3, SH, SW) uint8 tensor as a picture."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def grid(images: Tensor, *, columns: int, row_names: Sequence[str] = ()) -> Image.Image:
    """(B, 3, SH, SW) uint8 in rows of `columns`, with the name of each row at its left."""
    height, width = images.shape[-2:]
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    height, width, gap = height * factor, width * factor, 2
    margin = 8 + 7 * max(map(len, row_names)) if row_names else 0
    rows = -(-len(images) // columns)
    size = (margin + columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        corner = (margin + gap + column * (width + gap), gap + row * (height + gap))
        sheet.paste(to_picture(image).resize((width, height), Image.Resampling.NEAREST), corner)
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(row_names):
        draw.text((4, gap + row * (height + gap) + height // 2 - 6), name, fill="black")
    return sheet


def open_folder(folder: Path) -> None:
    """Make a folder for pictures, or say at once that it cannot be written."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")


def save_png(picture: Image.Image, path: Path, facts: Mapping[str, object]) -> None:
    """Write a PNG whose text holds the facts."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, pnginfo=png_text(facts))


def png_text(facts: Mapping[str, object]) -> PngInfo:
    """Facts as the text of a PNG."""
    text = PngInfo()
    for name, value in facts.items():
        text.add_itxt(name, str(value))
    return text


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RegscaleError(
            path,
            "cannot be written",
            found=error.strerror or error,
            fix="Choose another folder for pictures (--out).",
        ) from error
