"""Mean and deviation of each dimension of a target's tokens: kept with the weights, not trained."""

from torch import Tensor, nn, zeros

from regscale.layers.initial import constant
from regscale.models import ReadStats


class TokenStats(nn.Module):
    """Buffers that begin as what `read` gives, and that a checkpoint then brings back."""

    mean: Tensor  # (R,)
    std: Tensor  # (R,)

    def __init__(self, width: int, read: ReadStats) -> None:
        super().__init__()
        self.register_buffer("mean", zeros(width))
        self.register_buffer("std", zeros(width))
        self.initial = {
            "mean": constant(lambda: read()[0]),
            "std": constant(lambda: read()[1]),
        }
