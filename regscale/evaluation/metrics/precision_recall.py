"""Improved precision and recall (arXiv 1904.06991): which samples lie in the other set's manifold.

A set's manifold is the union of balls around its samples, each reaching to its k-th neighbour.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from regscale.evaluation.metrics._blocks import ROWS, blocks, squared_distances
from regscale.evaluation.metrics._enough import at_least


class PrecisionRecall(NamedTuple):
    """`precision`: of generated samples in the real manifold; `recall`: the other way round."""

    precision: float
    recall: float


def precision_recall(
    reference_features: Tensor,
    generated_features: Tensor,
    *,
    k: int = 3,
    block: int = ROWS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> PrecisionRecall:
    """Equations 1 and 2 with k = 3, as in ADM: 10,000 reference and 50,000 generated features.

    Features (N, R) stay where they are, in their dtype; `block` rows of each set are on `device`
    at once, so memory is bounded by the blocks. ADM's evaluator rounds features to half before it
    takes distances, which moves samples on the boundary; here nothing is rounded.
    """
    counts = len(reference_features), len(generated_features)
    at_least(k + 1, *counts, metric="precision and recall")
    # distances do not change when all points move; near the origin they lose fewer digits
    centre = reference_features.double().mean(0).to(device, dtype)
    real_radii = _radii(reference_features, k, block, centre)
    made_radii = _radii(generated_features, k, block, centre)
    precise = torch.zeros(len(generated_features), dtype=torch.bool, device=device)
    recalled = torch.zeros(len(reference_features), dtype=torch.bool, device=device)
    for rows, real in blocks(reference_features, block, centre):
        for columns, made in blocks(generated_features, block, centre):
            distances = squared_distances(real, made)
            recalled[rows] |= (distances <= made_radii[columns]).any(1)
            precise[columns] |= (distances <= real_radii[rows, None]).any(0)
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))


def _radii(features: Tensor, k: int, block: int, centre: Tensor) -> Tensor:
    """Squared distance of each sample to its k-th neighbour in its own set, (N,)."""
    found = []
    for rows, part in blocks(features, block, centre):
        nearest = part.new_empty(len(part), 0)
        for columns, other in blocks(features, block, centre):
            distances = squared_distances(part, other)
            if rows == columns:
                distances.fill_diagonal_(0)  # itself, which is not counted among the k
            few = distances.topk(min(k + 1, len(other)), dim=1, largest=False).values
            both = torch.cat([nearest, few], dim=1)
            nearest = both.topk(min(k + 1, both.shape[1]), dim=1, largest=False).values
        found.append(nearest.amax(1))
    return torch.cat(found)
