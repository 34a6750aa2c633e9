"""A small vision transformer for ShapeCaps: the target of the text demo.

Four blocks of width 64 on patches of 4x4 pixels, trained by `python -m benchmarks.shapes_target` to
say which shapes and colours there are and where; the weights lie beside this file. Of 1,000 scenes
it never saw, its class token named all words of 76.2%, of scenes with held-out content 39.2%.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from regscale.config import Invalid
from regscale.representations._small_vit import Shape, SmallViT
from regscale.types import Features

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SHAPE = Shape(channels=3, side=32, patch=4, width=64, depth=4, heads=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which of its states are the token; the model is the file beside this module.

    mean: of the patches in each of `rows` x `rows` equal parts of the picture, normalised again.
    """

    token: Literal["class", "mean"] = "class"
    rows: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or SHAPE.rows % self.rows or (self.token == "class" and self.rows > 1):
            raise Invalid(
                "rows",
                f"divides {SHAPE.rows} rows of patches, and is 1 for the class token",
                found=f"{self.rows} with token {self.token}",
                fix="Try token: mean with rows: 2, which makes 4 tokens.",
            )


class ShapesTarget:
    """The frozen vision transformer as a target: its token or tokens and 8x8 patches."""

    width = SHAPE.width

    def __init__(self, weights: Path, config: Config) -> None:
        self.config, self.num_tokens = config, config.rows**2
        digest = hashlib.blake2b(weights.read_bytes(), digest_size=8)
        token = "" if config.token == "class" else f"-mean-{config.rows}"
        self.identity = f"shapes_vit-{digest.hexdigest()}{token}"
        self.model = SmallViT(SHAPE)
        self.model.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
        self.model.eval().requires_grad_(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Eight by eight for every size: images are resized to 32x32."""
        del height, width
        return SHAPE.rows, SHAPE.rows

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images (B, 3, SH, SW), in fp32 also under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            hidden = self.model(to_canvas(images))
            patches = hidden[:, 1:]
            mean = self.config.token == "mean"
            tokens = means(patches, self.config.rows) if mean else hidden[:, :1]
        return Features(tokens=tokens, patches=patches)

    def to(self, device: torch.device) -> "ShapesTarget":
        self.model.to(device)
        return self


def means(patches: Tensor, rows: int) -> Tensor:
    """(B, rows^2, R) of patches (B, N, R): the mean of each part, of mean 0 and variance 1."""
    plane = patches.transpose(1, 2).unflatten(2, (SHAPE.rows, SHAPE.rows))  # (B, R, 8, 8)
    pooled = F.adaptive_avg_pool2d(plane, rows).flatten(2).transpose(1, 2)
    return F.layer_norm(pooled, pooled.shape[-1:])


def to_canvas(images: Tensor) -> Tensor:
    """uint8 images (B, 3, SH, SW) as (B, 3, 32, 32) in [-1, 1]; other sizes are resized."""
    scaled = images.float() / 127.5 - 1
    if scaled.shape[-2:] != (SHAPE.side, SHAPE.side):
        scaled = F.interpolate(scaled, (SHAPE.side, SHAPE.side), mode="bilinear", antialias=True)
    return scaled


def build(config: Config) -> ShapesTarget:
    """The shipped target."""
    return ShapesTarget(WEIGHTS, config)
