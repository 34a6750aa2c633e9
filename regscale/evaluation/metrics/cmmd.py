"""CMMD (arXiv 2401.09603): the distance of CLIP image embeddings under a Gaussian kernel."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from regscale.evaluation.metrics._blocks import ROWS, blocks, squared_distances

SIGMA, SCALE = 10.0, 1000.0  # section 4 of the paper


def cmmd(
    reference_features: Tensor,
    generated_features: Tensor,
    *,
    sigma: float = SIGMA,
    scale: float = SCALE,
    block: int = ROWS,
    device: torch.device | str = "cpu",
) -> float:
    """`scale` times the squared MMD with exp(-|x - y|^2 / (2 sigma^2)), in its biased estimate.

    The estimate is that of the authors' code: means over all pairs, a sample and itself included.
    Embeddings are brought to unit length first, as theirs are; they use CLIP-L/14 at 336 pixels.
    """
    real, made = (F.normalize(f.double(), dim=1) for f in (reference_features, generated_features))
    mean = partial(_mean_kernel, sigma=sigma, block=block, device=torch.device(device))
    return scale * (mean(real, real) + mean(made, made) - 2 * mean(real, made))


def _mean_kernel(a: Tensor, b: Tensor, *, sigma: float, block: int, device: torch.device) -> float:
    """The kernel less 1, averaged: the 1s cancel in the MMD, and with them most rounding."""
    origin = torch.zeros(a.shape[1], dtype=torch.float64, device=device)
    total = origin.new_zeros(())
    for _, rows in blocks(a, block, origin):
        for _, columns in blocks(b, block, origin):
            total += torch.expm1(squared_distances(rows, columns) / (-2 * sigma**2)).sum()
    return float(total) / (len(a) * len(b))
