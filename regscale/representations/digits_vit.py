"""A small vision transformer for the embedded digits: the target of the default configuration.

Four blocks of width 48 on patches of 2x2 pixels, trained by `python -m benchmarks.digits_target`
to name the digit and to redraw it from its class token; the weights lie beside this file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.types import Features

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SIDE, PATCH, WIDTH, DEPTH, HEADS = 8, 2, 48, 4, 4
ROWS = SIDE // PATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Nothing to choose: the model is the file beside this module."""


class Block(nn.Module):
    """Attention and a GELU MLP, each after a LayerNorm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        B, N, _ = hidden.shape
        qkv = self.qkv(self.norm1(hidden)).reshape(B, N, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, WIDTH / heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, WIDTH)
        hidden = hidden + self.out(mixed)
        return hidden + self.mlp(self.norm2(hidden))  # type: ignore[no-any-return]


class DigitsViT(nn.Module):
    """Grey digits (B, 8, 8) in [-1, 1] to class token and patches (B, 1 + 16, WIDTH).

    The last LayerNorm has no scale and no shift, so every feature vector has mean 0 and variance 1:
    the class token is noised as it is, without statistics to keep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, 1 + ROWS * ROWS, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)

    def forward(self, grey: Tensor) -> Tensor:
        patches = grey.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (B, 4, 4, 2, 2)
        embedded = self.embed(patches.flatten(3).flatten(1, 2))  # (B, 16, WIDTH)
        first = self.class_token.expand(len(grey), -1, -1)
        hidden = torch.cat([first, embedded], 1) + self.positions
        return self.norm(self.blocks(hidden))  # type: ignore[no-any-return]


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
            hidden = self.model(to_grey(images))
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
