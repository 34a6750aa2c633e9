"""ADM's crops (arXiv 2105.05233): halve with a box filter, resize the short side, cut.

The same of a rectangle: what is resized just covers it.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regscale.data._size import Size


def centre_crop(picture: Image.Image, size: int | Size) -> Tensor:
    """An image (3, height, width) uint8 from the middle of a picture; an int is a square's side."""
    height, width = sides(size)
    resized = shrink(picture.convert("RGB"), size)
    return cut(resized, (resized.height - height) // 2, (resized.width - width) // 2, size)


def sides(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


def shrink(picture: Image.Image, size: int | Size) -> Image.Image:
    """The picture just covering a size, so with a short side of a square's; a smaller one grows."""
    height, width = sides(size)
    while picture.height >= 2 * height and picture.width >= 2 * width:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, resample=Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    resized = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(resized, resample=Image.Resampling.BICUBIC)


def cut(picture: Image.Image, top: int, left: int, size: int | Size) -> Tensor:
    """A part of an RGB picture as a (3, height, width) tensor."""
    height, width = sides(size)
    whole = picture.size == (width, height)
    part = picture if whole else picture.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)
