"""Fixed sine and cosine tables: places of patches, places of tokens, times, and rotations."""

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F


def sincos(positions: Tensor, width: int) -> Tensor:
    """[sin(p w_i), cos(p w_i)] with w_i = 10000^(-2i/width): (len(positions), width), float64."""
    omega = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_table(rows: int, columns: int, width: int) -> Tensor:
    """Places of patches: the first half of the width holds the column, the second the row
    (the table of MAE, DiT and SiT): (rows * columns, width), fp32."""
    column = torch.arange(columns).repeat(rows)
    row = torch.arange(rows).repeat_interleave(columns)
    return torch.cat([sincos(column, width // 2), sincos(row, width // 2)], dim=1).float()


def resized_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Places of the patches of one grid (rows * columns, width) on another, bicubic: a corner stays
    the place of a corner."""
    if old == new:
        return table
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, new, mode="bicubic", antialias=True, align_corners=False)
    return image.flatten(2)[0].T


def token_table(num_tokens: int, width: int) -> Tensor:
    """Places of one target's tokens: zero for a single token, as published, else sin and cos."""
    if num_tokens == 1:
        return torch.zeros(1, width)
    return sincos(torch.arange(num_tokens), width).float()


def time_features(t: Tensor, width: int = 256) -> Tensor:
    """[cos(t w_i), sin(t w_i)] with w_i = 10000^(-2i/width), t in [0, 1] unscaled as in SiT:
    (B, width), fp32."""
    half = width // 2
    frequencies = torch.exp(-log(10000) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rotations(rows: int, columns: int, head_dim: int, *, before: int = 0) -> Tensor:
    """cos and sin of the angles by which a head's queries and keys turn (RoPE, arXiv 2104.09864;
    on two axes as in arXiv 2403.13298): (2, before + rows * columns, head_dim / 2), fp32.

    The first half of the angles is the row's, the second the column's, with frequencies
    10000^(-4i/head_dim). Rows and columns are counted from the middle of the picture, so what
    stands `before` the patches, at angle 0, is as far from every corner.
    """
    omega = 10000.0 ** -(torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim / 4))
    row = torch.arange(rows).double().repeat_interleave(columns) - (rows - 1) / 2
    column = torch.arange(columns).double().repeat(rows) - (columns - 1) / 2
    angles = torch.cat([row[:, None] * omega, column[:, None] * omega], dim=1)
    angles = torch.cat([torch.zeros(before, head_dim // 2), angles])
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x (B, heads, T, head_dim) with each pair (i, i + head_dim / 2) turned by the angles of a
    table of `rotations`, in fp32 and back."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = table.float().unbind()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
