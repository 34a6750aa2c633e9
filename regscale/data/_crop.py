"""ADM's crops (arXiv 2105.05233): halve with a box filter, resize the short side, cut."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def centre_crop(picture: Image.Image, size: int) -> Tensor:
    """A square (3, size, size) uint8 image from the middle of a picture."""
    resized = shrink(picture.convert("RGB"), size)
    return cut(resized, (resized.height - size) // 2, (resized.width - size) // 2, size)


def shrink(picture: Image.Image, short: int) -> Image.Image:
    """The picture with a short side of `short` pixels; a smaller one grows."""
    while min(picture.size) >= 2 * short:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, resample=Image.Resampling.BOX)
    scale = short / min(picture.size)
    sides = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(sides, resample=Image.Resampling.BICUBIC)


def cut(picture: Image.Image, top: int, left: int, size: int) -> Tensor:
    """A square of an RGB picture as a (3, size, size) tensor."""
    whole = picture.size == (size, size)
    square = picture if whole else picture.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
