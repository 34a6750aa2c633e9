"""Masked autoencoders (arXiv 2111.06377): class token and patches after the encoder's LayerNorm.

Masking is off: a mask ratio of 0 keeps every patch, and ascending noise keeps their order, because
the library shuffles patches by their noise before it drops the last ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ViTMAEModel

from regscale.representations._pixels import IMAGENET
from regscale.representations._transformers import transformers_family
from regscale.representations._vision import Settings, Shape, VisionTarget
from regscale.types import Features


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """The class token of MAE saw no loss of its own; the authors fine-tune on it."""

    model: str = "facebook/vit-mae-base"


def _features(model: Any, pixels: Tensor) -> Features:
    patch = model.config.patch_size
    places = torch.arange(pixels.shape[2] // patch * (pixels.shape[3] // patch))
    order = places.to(pixels).expand(len(pixels), -1)  # (B, N)
    hidden = model(pixels, noise=order, interpolate_pos_encoding=True).last_hidden_state
    return Features(tokens=hidden[:, :1], patches=hidden[:, 1:])


FAMILY = transformers_family(
    "mae",
    classes={"vit_mae": ViTMAEModel},
    published={
        "facebook/vit-mae-base": Shape(768, 16, 224),
        "facebook/vit-mae-large": Shape(1024, 16, 224),
        "facebook/vit-mae-huge": Shape(1280, 14, 224),
    },
    preprocessing=IMAGENET,
    token="class token, nothing masked",
    features=_features,
    mask_ratio=0.0,
)


def build(config: Config) -> VisionTarget:
    """The target, nothing loaded yet."""
    return VisionTarget(FAMILY, config)
