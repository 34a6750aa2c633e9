"""A sheet of pictures, each above the prompt that it was drawn for.

B pictures, SH SW their sides.
"""

from collections.abc import Sequence
from textwrap import wrap
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from regscale.sampling.pictures import to_picture

SIDE = 96  # pixels at least; smaller pictures are enlarged by whole factors
GAP, LINE = 8, 13  # pixels: between pictures, and of a line of text
CHARACTER = 6  # pixels, about, of Pillow's own font
LINES = 4  # of a prompt


class Row(NamedTuple):
    """Pictures under one title; names of the wrong ones are written in red."""

    title: str
    images: Tensor  # (B, 3, SH, SW) uint8
    names: Sequence[str]
    right: Sequence[bool]


def sheet(rows: Sequence[Row]) -> Image.Image:
    """All rows, as wide as the longest; no space is left for what no row has."""
    height, width = rows[0].images.shape[-2:]
    factor = max(1, -(-SIDE // min(height, width)))
    height, width = height * factor, width * factor
    texts = [[_lines(name, width) for name in row.names] for row in rows]
    head = LINE + 2 if any(row.title for row in rows) else 0
    foot = LINE * max(len(lines) for named in texts for lines in named)
    step = (width + GAP, head + height + foot + GAP)
    columns = max(len(row.images) for row in rows)
    made = Image.new("RGB", (GAP + columns * step[0], GAP + len(rows) * step[1]), "white")
    pen = ImageDraw.Draw(made)
    for number, row in enumerate(rows):
        top = GAP + number * step[1]
        pen.text((GAP, top), row.title, fill="grey")
        for place, image in enumerate(row.images):
            corner = (GAP + place * step[0], top + head)
            enlarged = to_picture(image).resize((width, height), Image.Resampling.NEAREST)
            made.paste(enlarged, corner)
            colour = "black" if row.right[place] else "red"
            for line, text in enumerate(texts[number][place]):
                pen.text((corner[0], corner[1] + height + line * LINE), text, fill=colour)
    return made


def _lines(name: str, width: int) -> list[str]:
    return wrap(name, width // CHARACTER, max_lines=LINES, placeholder=" ...")


def captioned(images: Tensor, texts: Sequence[str], *, columns: int = 8) -> Image.Image:
    """Pictures above what each was drawn for."""
    starts = range(0, len(images), columns)
    rows = [(images[i : i + columns], texts[i : i + columns]) for i in starts]
    return sheet([Row("", part, names, [True] * len(part)) for part, names in rows])
