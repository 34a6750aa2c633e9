"""Matrices between all pairs of samples, made block by block and never held whole."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 2048  # of a block; two float64 blocks of 2048-wide features and their products take 100 MB


def blocks(features: Tensor, rows: int, centre: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive rows in the dtype and on the device of `centre`, less it."""
    for start in range(0, len(features), rows):
        part = slice(start, min(start + rows, len(features)))
        yield part, features[part].to(centre.device, centre.dtype) - centre


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 for all pairs, (len(a), len(b))."""
    products = torch.addmm(b.square().sum(1)[None], a, b.T, alpha=-2)
    return products.add_(a.square().sum(1)[:, None]).clamp_min_(0)
