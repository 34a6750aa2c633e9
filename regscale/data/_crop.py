"""ADM's crops (arXiv 2105.05233): halve with a box filter, resize the short side, cut."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def centre_crop(picture: Image.Image, size: int) -> Tensor:
    """A square (3, size, size) uint8 image from the middle of a picture."""
    pixels = shrink(picture.convert("RGB"), size)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return cut(pixels, top, left, size)


def shrink(picture: Image.Image, short: int) -> np.ndarray:
    """The pixels (H, W, 3) of a picture whose short side becomes `short`."""
    while min(picture.size) >= 2 * short:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, resample=Image.Resampling.BOX)
    scale = short / min(picture.size)
    sides = (round(picture.width * scale), round(picture.height * scale))
    return np.array(picture.resize(sides, resample=Image.Resampling.BICUBIC))


def cut(pixels: np.ndarray, top: int, left: int, size: int) -> Tensor:
    """A square of pixels as a (3, size, size) tensor."""
    return torch.from_numpy(pixels[top : top + size, left : left + size]).permute(2, 0, 1)
