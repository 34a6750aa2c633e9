"""DINOv3 vision transformers (arXiv 2508.10104): class token and patches after the last LayerNorm.

Positions are rotary, so there is no table to resample: images keep their own size.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DINOv3ViTModel

from regscale.representations._pixels import IMAGENET
from regscale.representations._transformers import transformers_family
from regscale.representations._vision import Settings, Shape, VisionTarget
from regscale.types import Features

WIDTHS = {"s": 384, "splus": 384, "b": 768, "l": 1024, "hplus": 1280, "7b": 4096}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """`size` null: the images' own, so 16x16 patches for 256 pixels and 32x32 for 512."""

    model: str = "facebook/dinov3-vitb16-pretrain-lvd1689m"


def _features(model: Any, pixels: Tensor) -> Features:
    hidden = model(pixels).last_hidden_state
    heads = 1 + model.config.num_register_tokens  # the class token is the first
    return Features(tokens=hidden[:, :heads], patches=hidden[:, heads:])


FAMILY = transformers_family(
    "dinov3",
    classes={"dinov3_vit": DINOv3ViTModel},
    published={
        f"facebook/dinov3-vit{size.replace('plus', '')}16{'plus' * size.endswith('plus')}"
        "-pretrain-lvd1689m": Shape(width, 16, None, registers=4)
        for size, width in WIDTHS.items()
    },
    preprocessing=IMAGENET._replace(filter="bilinear"),
    token="class token; registers left out",  # a choice with registers says so in the identity
    features=_features,
    any_size=True,
)


def build(config: Config) -> VisionTarget:
    """The target, nothing loaded yet."""
    return VisionTarget(FAMILY, config)
