"""What one extractor returned for one set of pictures, kept whole for metrics of neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regscale.evaluation.metrics.moments import Gaussian, Moments

ROWS = 4096  # converted to float64 at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Features on the CPU, fp32; of 50,000 pictures by Inception 1 GB."""

    evaluator: str  # the extractor's identity
    features: Tensor  # (N, R)
    spatial: Tensor | None = None  # (N, 2023)
    logits: Tensor | None = None  # (N, 1008)

    def __len__(self) -> int:
        return len(self.features)


def joined(parts: Sequence[Collected]) -> Collected:
    """One set of the parts, in their order; all of one extractor."""
    evaluators = {part.evaluator for part in parts}
    assert len(evaluators) == 1, f"features of one extractor join, these are of {evaluators}"
    return Collected(
        evaluator=parts[0].evaluator,
        features=torch.cat([part.features for part in parts]),
        spatial=_cat([part.spatial for part in parts]),
        logits=_cat([part.logits for part in parts]),
    )


def gaussian_of(features: Tensor) -> Gaussian:
    """Mean and covariance in float64, a block of rows after the other."""
    moments = Moments.empty(features.shape[1], device=features.device)
    for rows in features.split(ROWS):
        moments = moments.add(rows)
    return moments.gaussian()


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    assert len(present) in (0, len(parts)), "every part has a field or none has it"
    return torch.cat(present) if present else None
