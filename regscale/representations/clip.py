"""CLIP vision towers (arXiv 2103.00020): the class token after the last LayerNorm.

Patches are the states before that LayerNorm, which CLIP gives to the class token alone (REPA takes
them so too). With `projection` the token is the image embedding, and there are no patches.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from regscale.representations._pixels import CLIP
from regscale.representations._transformers import transformers_family
from regscale.representations._vision import Settings, Shape, VisionTarget
from regscale.types import Features

# name: (width, width of the image embedding, patch, size)
PUBLISHED = {
    "openai/clip-vit-large-patch14": (1024, 768, 14, 224),
    "openai/clip-vit-large-patch14-336": (1024, 768, 14, 336),
    "openai/clip-vit-base-patch16": (768, 512, 16, 224),
    "openai/clip-vit-base-patch32": (768, 512, 32, 224),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": (1024, 768, 14, 224),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (1280, 1024, 14, 224),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """The image embedding is not divided by its norm."""

    model: str = "openai/clip-vit-large-patch14"
    projection: bool = False  # the token is the image embedding that CLIP compares with text


def _states(model: Any, pixels: Tensor) -> Features:
    out = model(pixels, interpolate_pos_encoding=True)
    return Features(tokens=out.pooler_output[:, None], patches=out.last_hidden_state[:, 1:])


def _embedding(model: Any, pixels: Tensor) -> Features:
    out = model(pixels, interpolate_pos_encoding=True)
    return Features(tokens=out.image_embeds[:, None], patches=None)


_family = partial(transformers_family, "clip", preprocessing=CLIP)
STATES = _family(
    classes=dict.fromkeys(("clip", "clip_vision_model"), CLIPVisionModel),
    published={name: Shape(width, *rest) for name, (width, _, *rest) in PUBLISHED.items()},
    token="class token after the last LayerNorm; patches before it",
    features=_states,
)
EMBEDDING = _family(
    classes=dict.fromkeys(("clip", "clip_vision_model"), CLIPVisionModelWithProjection),
    published={name: Shape(*rest) for name, (_, *rest) in PUBLISHED.items()},
    token="image embedding",
    features=_embedding,
    width=lambda config: config.projection_dim,
    has_patches=False,
)


def build(config: Config) -> VisionTarget:
    """The target, nothing loaded yet."""
    return VisionTarget(EMBEDDING if config.projection else STATES, config)
