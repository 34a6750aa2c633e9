"""SigLIP 2 and SigLIP vision towers (arXiv 2502.14786, 2303.15343): no class token.

The token is the output of the attention-pooling head, which the authors compare with text; patches
are the states after the last LayerNorm, which that head pools.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Siglip2VisionModel, SiglipVisionModel

from regscale.representations._pixels import HALVES
from regscale.representations._transformers import transformers_family
from regscale.representations._vision import Settings, Shape, VisionTarget
from regscale.types import Features

WIDTHS = {"base": 768, "large": 1024, "so400m": 1152, "giant-opt": 1536}
SIZES = {
    "base-patch16": (224, 256, 384, 512),
    "base-patch32": (256,),
    "large-patch16": (256, 384, 512),
    "so400m-patch14": (224, 384),
    "so400m-patch16": (256, 384, 512),
    "giant-opt-patch16": (256, 384),
}
PUBLISHED = {
    f"google/siglip2-{name}-{size}": Shape(WIDTHS[name.rpartition("-")[0]], int(name[-2:]), size)
    for name, sizes in SIZES.items()
    for size in sizes
}
PUBLISHED |= {
    f"google/siglip2-{name}-patch16-naflex": Shape(WIDTHS[name], 16, 256)
    for name in ("base", "so400m")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """The default gives 16x16 patches."""

    model: str = "google/siglip2-base-patch16-256"


def _features(model: Any, pixels: Tensor) -> Features:
    if model.config.model_type == "siglip2_vision_model":
        out = model(**_cut(pixels, model.config.patch_size))
    else:
        out = model(pixels, interpolate_pos_encoding=True)
    return Features(tokens=out.pooler_output[:, None], patches=out.last_hidden_state)


def _cut(pixels: Tensor, patch: int) -> dict[str, Tensor | None]:
    """What NaFlex models take: patches of (row, column, colour) and their grid, on the host."""
    cut = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, p, p)
    grid = torch.tensor([cut.shape[2:4]] * len(cut))
    patches = cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # (B, N, p p 3)
    return {"pixel_values": patches, "pixel_attention_mask": None, "spatial_shapes": grid}


FAMILY = transformers_family(
    "siglip2",
    classes={
        "siglip": SiglipVisionModel,
        "siglip_vision_model": SiglipVisionModel,
        "siglip2": Siglip2VisionModel,
        "siglip2_vision_model": Siglip2VisionModel,
    },
    published=PUBLISHED,
    preprocessing=HALVES._replace(filter="bilinear"),
    token="pooled by the attention head",
    features=_features,
)


def build(config: Config) -> VisionTarget:
    """The target, nothing loaded yet."""
    return VisionTarget(FAMILY, config)
