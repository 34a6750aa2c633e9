"""How far a metric puts real data from itself: a difference below it says nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

from regscale import chance
from regscale.evaluation.metrics._enough import at_least


def noise_floor(
    metric: Callable[[Tensor, Tensor], float], features: Tensor, *, seed: int = 0
) -> float:
    """`metric` between two random halves of the features (N, R) of real data.

    Fréchet distances fall with the number of samples, about as 1/N: halves of the size that the
    generated set has give its floor, smaller halves a value above it.
    """
    at_least(2, len(features), metric="a noise floor")
    order = chance.permutation(len(features), seed=seed, purpose="evaluation/noise_floor")
    half = len(features) // 2
    a, b = torch.from_numpy(order[:half]), torch.from_numpy(order[half : 2 * half])
    return metric(features[a.to(features.device)], features[b.to(features.device)])


def means_apart(a: Tensor, b: Tensor) -> float:
    """The metric of a mean, which needs no second set: how far apart those of two sets are."""
    return abs(float(a.double().mean() - b.double().mean()))
