"""ADM's centre crop (arXiv 2105.05233): halve with a box filter, resize the short side, cut."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def centre_crop(picture: Image.Image, size: int) -> Tensor:
    """A square (3, size, size) uint8 image from the middle of a picture."""
    picture = picture.convert("RGB")
    while min(picture.size) >= 2 * size:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, resample=Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.array(picture.resize(sides, resample=Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return torch.from_numpy(pixels[top : top + size, left : left + size]).permute(2, 0, 1)
