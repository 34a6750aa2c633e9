"""Mean and covariance of a stream of features, added in float64 and merged over processes.

B batch, R width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from regscale.cluster import Cluster
from regscale.evaluation.metrics._enough import at_least


@dataclass(frozen=True, slots=True)
class Gaussian:
    """The first two moments of a set of features, float64."""

    mean: Tensor  # (R,)
    covariance: Tensor  # (R, R)

    def __post_init__(self) -> None:
        R = len(self.mean)
        assert self.mean.shape == (R,), "a mean is one vector"
        assert self.covariance.shape == (R, R), "a covariance is as wide as its mean"


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and scatter (the sum of squared deviations from the mean) of what was added.

    Batches join by the update of Chan, Golub and LeVeque (1983), which never subtracts two large
    sums. Adding returns another value, so a half-read batch changes nothing.
    """

    count: int
    mean: Tensor  # (R,) float64
    scatter: Tensor  # (R, R) float64

    @classmethod
    def empty(cls, width: int, *, device: torch.device | str = "cpu") -> "Moments":
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.new_zeros(width, width))

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of one batch (B, R)."""
        values = features.detach().double()
        mean = values.mean(0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def add(self, features: Tensor) -> "Moments":
        """With a batch (B, R) more; on this value's device."""
        if not len(features):
            return self
        return self.merge(Moments.of(features.to(self.mean.device)))

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.scatter + other.scatter + weight * torch.outer(apart, apart),
        )

    def over_ranks(self, cluster: Cluster) -> "Moments":
        """Of what all processes added, the same bits on each; collective, on the CPU.

        With m the common mean: scatter = sum over ranks of scatter_r + n_r (mean_r - m)(...)'.
        """
        mean, scatter = self.mean.cpu(), self.scatter.cpu()
        own = torch.tensor(float(self.count), dtype=torch.float64)
        world = cluster.world_size
        count = cluster.mean(own.clone()) * world  # sums in place
        if not count:
            return self
        common = cluster.mean(mean * own) * world / count
        apart = mean - common
        total = cluster.mean(scatter + own * torch.outer(apart, apart)) * world
        return Moments(round(count.item()), common, total)

    def gaussian(self) -> Gaussian:
        """The mean and the unbiased covariance (divided by count - 1, as `numpy.cov`)."""
        at_least(2, self.count, metric="a covariance")
        return Gaussian(self.mean, self.scatter / (self.count - 1))
