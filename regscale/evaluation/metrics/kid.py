"""Kernel Inception Distance (arXiv 1801.01401): an unbiased distance, so small sets can be told."""

import numpy as np
import torch
from torch import Tensor

from regscale.evaluation.metrics._enough import at_least
from regscale.evaluation.metrics.inception_score import Spread


def kid(
    reference_features: Tensor,
    generated_features: Tensor,
    *,
    subset_size: int = 1000,
    num_subsets: int = 100,
    seed: int = 2020,
) -> Spread:
    """The unbiased squared MMD with the kernel (x.y / R + 1)^3, over random subsets.

    Each subset takes `subset_size` samples of either set (or as many as the smaller one has)
    without replacement, generated ones first, from one `numpy.random.RandomState(seed)`: the
    scheme and seed of torch-fidelity.
    """
    size = min(subset_size, len(reference_features), len(generated_features))
    at_least(2, size, metric="KID")
    chance = np.random.RandomState(seed)
    found = []
    for _ in range(num_subsets):
        made = _chosen(generated_features, size, chance)
        real = _chosen(reference_features, size, chance)
        within = (_off_diagonal(made) + _off_diagonal(real)) / (size * (size - 1))
        found.append(within - 2 * _kernel(made, real).mean())
    values = torch.stack(found)
    return Spread(float(values.mean()), float(values.std(correction=0)))


def _chosen(features: Tensor, size: int, chance: np.random.RandomState) -> Tensor:
    rows = torch.from_numpy(chance.choice(len(features), size, replace=False))
    return features[rows.to(features.device)].double()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _off_diagonal(features: Tensor) -> Tensor:
    kernel = _kernel(features, features)
    return kernel.sum() - kernel.trace()
