"""I-JEPA target encoders (arXiv 2301.08243): they have no class token.

The token is the mean of the patches after the last LayerNorm, which the authors classify by.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import IJepaModel

from regscale.representations._pixels import IMAGENET
from regscale.representations._transformers import transformers_family
from regscale.representations._vision import Settings, Shape, VisionTarget
from regscale.types import Features


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """The default gives 16x16 patches."""

    model: str = "facebook/ijepa_vith14_1k"


def _features(model: Any, pixels: Tensor) -> Features:
    patches = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    return Features(tokens=patches.mean(1, keepdim=True), patches=patches)


FAMILY = transformers_family(
    "ijepa",
    classes={"ijepa": IJepaModel},
    published={
        "facebook/ijepa_vith14_1k": Shape(1280, 14, 224),
        "facebook/ijepa_vith14_22k": Shape(1280, 14, 224),
        "facebook/ijepa_vith16_1k": Shape(1280, 16, 448),
        "facebook/ijepa_vitg16_22k": Shape(1408, 16, 224),
    },
    preprocessing=IMAGENET._replace(filter="bilinear"),
    token="mean of patches",
    features=_features,
)


def build(config: Config) -> VisionTarget:
    """The target, nothing loaded yet."""
    return VisionTarget(FAMILY, config)
