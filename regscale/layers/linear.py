"""Linear and normalisation layers under the one precision policy (docs/numerics.md)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.layers.initial import Rule, ones, xavier_uniform, zeros


class Linear(nn.Linear):
    """A linear layer whose product runs in `compute_dtype`, whatever its weights are stored in.

    None means the dtype of the weights. An engine that keeps fp32 weights sets it; one that
    gathers bf16 copies need not, and gets the same bits.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, width: int, out: int, *, weight: Rule = xavier_uniform) -> None:
        super().__init__(width, out)
        self.initial = {"weight": weight, "bias": zeros}

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.compute_dtype or self.weight.dtype
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


def rounded(weight: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """fp32 numbers that `dtype` can hold; None leaves them as they are."""
    if weight is None:
        return None
    return weight.float() if dtype is None else weight.to(dtype).float()


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with fp32 statistics and output.

    Its weights are rounded to `compute_dtype` at use, as engines do that gather a block as one.
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = False) -> None:
        super().__init__(width, eps=eps, elementwise_affine=affine)
        self.initial = {"weight": ones, "bias": zeros} if affine else {}

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded(self.weight, self.compute_dtype)
        bias = rounded(self.bias, self.compute_dtype)
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean of x^2) * weight with fp32 statistics and output (arXiv 1910.07467, eq. 4)."""

    compute_dtype: torch.dtype | None = None
    weight: nn.Parameter | None

    def __init__(self, width: int, *, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.empty(width)) if affine else None)
        self.initial = {"weight": ones}

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded(self.weight, self.compute_dtype)
        return F.rms_norm(x.float(), x.shape[-1:], weight, self.eps)


class PatchEmbed(nn.Module):
    """Latents (B, C, H, W) to patch vectors (B, N, D), row by row."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.proj.initial = {"weight": xavier_uniform, "bias": zeros}  # type: ignore[assignment]

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Projector(nn.Sequential):
    """Three linear layers with SiLU: hidden states to the width of a target (REPA, section 3)."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(
            Linear(width, hidden), nn.SiLU(), Linear(hidden, hidden), nn.SiLU(), Linear(hidden, out)
        )
