"""Images as their encoder's authors prepared them: resized with antialiasing, then normalised.

Their processors resize 8-bit images on the CPU; this is the same filter in fp32 on the device, and
differs from Pillow by its rounding to whole levels after each direction.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.nn import functional as F
from transformers.utils.hub import cached_file

from regscale.pretrained import channels, place, reading, unreadable

Filter = Literal["bilinear", "bicubic"]
FILTERS: dict[object, Filter] = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
FILE = "preprocessor_config.json"


class Preprocessing(NamedTuple):
    """Of RGB in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: Filter

    def __call__(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """uint8 images (B, 3, SH, SW) as the encoder's input, fp32."""
        pixels = images.float()
        if size != tuple(images.shape[-2:]):
            pixels = F.interpolate(pixels, size, mode=self.filter, antialias=True)
        mean, std = (channels(values, images.device) for values in (self.mean, self.std))
        return (pixels.clamp(0, 255) / 255 - mean) / std  # bicubic leaves the range


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
HALVES = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
CLIP = Preprocessing(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic"
)


def read_preprocessing(name: str, authors: Preprocessing, *, kind: str) -> Preprocessing:
    """What the model's own preprocessor_config.json says, and `authors` where it says nothing.

    Its size and crop are left out: patches cover the whole image, at the size of the target.
    """
    with reading(name, kind=kind):
        file = cached_file(place(name), FILE, _raise_exceptions_for_missing_entries=False)
        values: dict[str, Any] = {} if file is None else json.loads(Path(file).read_text("utf-8"))
    resample = values.get("resample")
    if resample is not None and resample not in FILTERS:
        raise unreadable(name, f"{FILE} with resample {resample}, not 2 or 3", kind=kind)
    if abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise unreadable(name, f"{FILE} with a rescale_factor other than 1/255", kind=kind)
    return Preprocessing(
        tuple(values.get("image_mean") or authors.mean),
        tuple(values.get("image_std") or authors.std),
        FILTERS.get(resample, authors.filter),
    )
