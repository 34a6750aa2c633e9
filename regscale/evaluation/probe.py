"""Linear probe: how well a ridge regression on features names the class of unseen samples."""

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_probe(
    features: Tensor,
    labels: Tensor,
    unseen: Tensor,
    unseen_labels: Tensor,
    *,
    penalty: float = 1e-3,
) -> float:
    """The accuracy on unseen samples, of features (N, R) standardised by the seen ones; float64.

    One-hot classes by least squares with a penalty of `penalty` N: a closed form, so there is no
    learning rate to choose and the same features give the same number.
    """
    mean, std = features.double().mean(0), features.double().std(0).clamp_min(1e-8)
    seen, other = (_standard(each, mean, std) for each in (features, unseen))
    classes = int(torch.cat([labels, unseen_labels]).max()) + 1
    targets = F.one_hot(labels, classes).double()
    gram = seen.T @ seen
    gram.diagonal().add_(penalty * len(seen))
    weights = torch.linalg.solve(gram, seen.T @ targets)
    return float((other @ weights).argmax(1).eq(unseen_labels).double().mean())


def _standard(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """With a column of ones."""
    scaled = (features.double() - mean) / std
    return torch.cat([scaled, scaled.new_ones(len(scaled), 1)], dim=1)
