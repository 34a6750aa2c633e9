"""A small vision transformer for the embedded digits: the target of the default configuration.

Four blocks of width 48 on patches of 2x2 pixels, trained by `python -m benchmarks.digits_target`
to name the digit and to redraw it from its class token; the weights lie beside this file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from regscale.representations._small_vit import Shape, SmallViT
from regscale.types import Features

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SIDE, PATCH, WIDTH, DEPTH, HEADS = 8, 2, 48, 4, 4
ROWS = SIDE // PATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Nothing to choose: the model is the file beside this module."""


class DigitsViT(SmallViT):
    """Grey digits (B, 1, 8, 8) in [-1, 1] to class token and patches (B, 1 + 16, WIDTH)."""

    def __init__(self) -> None:
        super().__init__(
            Shape(channels=1, side=SIDE, patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)
        )


class DigitsTarget:
    """The frozen vision transformer as a target: one class token and 4x4 patches."""

    width, num_tokens = WIDTH, 1

    def __init__(self, weights: Path) -> None:
        digest = hashlib.blake2b(weights.read_bytes(), digest_size=8)
        self.identity = f"digits_vit-{digest.hexdigest()}"
        self.model = DigitsViT()
        self.model.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
        self.model.eval().requires_grad_(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Four by four for every size: images are resized to 8x8."""
        del height, width
        return ROWS, ROWS

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images (B, 3, SH, SW), in fp32 also under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            hidden = self.model(to_grey(images)[:, None])
        return Features(tokens=hidden[:, :1], patches=hidden[:, 1:])

    def to(self, device: torch.device) -> "DigitsTarget":
        self.model.to(device)
        return self


def to_grey(images: Tensor) -> Tensor:
    """uint8 images (B, 3, SH, SW) as grey (B, 8, 8) in [-1, 1]; other sizes are resized."""
    grey = images.float().mean(1, keepdim=True) / 127.5 - 1
    if grey.shape[-2:] != (SIDE, SIDE):
        grey = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)
    return grey[:, 0]


def build(config: Config) -> DigitsTarget:
    """The shipped target; `config` has nothing to say."""
    del config
    return DigitsTarget(WEIGHTS)
