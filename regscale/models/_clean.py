"""An image head that answers with clean latents: the velocity follows from them and the time.

What is noisy need not pass through the width of the model (JiT, arXiv 2511.13720). On the linear
path the velocity is (noisy - clean) / t; below a least time the head answers with a part of the
noise again, so that the loss of small errors there stays finite.
"""

from torch import Tensor


def velocity_of(clean: Tensor, noisy: Tensor, time: Tensor, *, least: float) -> Tensor:
    """(noisy - clean) / max(t, least) of latents (B, C, H, W) at times (B,)."""
    return (noisy - clean) / time.clamp(min=least)[:, None, None, None]
