"""The Fréchet distance of two Gaussians: FID, sFID and FD-DINOv2 differ in their features alone.

FID (arXiv 1706.08500) is of Inception's 2048 pool features; sFID (arXiv 2103.03841) of the first 7
channels of its `mixed_6/conv`, 17 x 17 x 7 = 2023; FD-DINOv2 (arXiv 2306.04675) of DINOv2-L/14's
class token.
"""

import torch
from torch import Tensor

from regscale.evaluation.metrics.moments import Gaussian


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau 1982), in float64.

    The last trace is the sum of the singular values of C_a^(1/2) C_b^(1/2), so no root of a
    non-symmetric matrix is taken and singular covariances need no offset on their diagonals.
    """
    mean_a, cov_a, mean_b, cov_b = (
        values.detach().double().to(mean_a.device) for values in (mean_a, cov_a, mean_b, cov_b)
    )
    assert mean_a.shape == mean_b.shape, "features of one extractor have one width"
    apart = mean_a - mean_b
    cross = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    return float(apart @ apart + cov_a.trace() + cov_b.trace() - 2 * cross)


def frechet_distance_of(a: Gaussian, b: Gaussian) -> float:
    """`frechet_distance` of two sets of features."""
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues below their own rounding error count as zero."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > rounding, values, torch.zeros_like(values))
    root: Tensor = (vectors * values.sqrt()) @ vectors.T
    return root
