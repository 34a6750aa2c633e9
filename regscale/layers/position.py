"""Fixed sine and cosine tables: places of patches, places of tokens, and times."""

from math import log

import torch
from torch import Tensor


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
