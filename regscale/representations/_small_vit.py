"""The small vision transformer of the shipped targets: pre-norm blocks, one class token."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Square images of `side` pixels in patches of `patch`."""

    channels: int
    side: int
    patch: int
    width: int
    depth: int
    heads: int

    @property
    def rows(self) -> int:
        return self.side // self.patch


class Block(nn.Module):
    """Attention and a GELU MLP, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        B, N, D = hidden.shape
        qkv = self.qkv(self.norm1(hidden)).reshape(B, N, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
        hidden = hidden + self.out(mixed)
        return hidden + self.mlp(self.norm2(hidden))  # type: ignore[no-any-return]


class SmallViT(nn.Module):
    """Images (B, C, SH, SW) in [-1, 1] to class token and patches (B, 1 + N, D).

    The last LayerNorm has no scale and no shift, so every feature vector has mean 0 and variance 1:
    the class token is noised as it is, without statistics to keep.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, places = shape, shape.rows**2
        self.embed = nn.Linear(shape.channels * shape.patch**2, shape.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + places, shape.width))
        self.blocks = nn.Sequential(*[Block(shape.width, shape.heads) for _ in range(shape.depth)])
        self.norm = nn.LayerNorm(shape.width, elementwise_affine=False)

    def forward(self, images: Tensor) -> Tensor:
        p = self.shape.patch
        patches = images.unfold(2, p, p).unfold(3, p, p)  # (B, C, rows, rows, p, p)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, N, C p p)
        first = self.class_token.expand(len(images), -1, -1)
        hidden = torch.cat([first, self.embed(patches)], 1) + self.positions
        return self.norm(self.blocks(hidden))  # type: ignore[no-any-return]
