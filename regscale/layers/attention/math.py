"""The formula itself with a softmax in at least fp32: what the other backends are compared with."""

import torch
from torch import Tensor

from regscale.layers.attention._setting import Missing, Setting, key_mask


def missing(setting: Setting) -> Missing | None:  # noqa: ARG001
    return None


def kernel(setting: Setting) -> str:  # noqa: ARG001
    return f"torch {torch.__version__}"


def attend(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None) -> Tensor:
    """All scores at once: (B, heads, Lq, Lk) numbers are held for the backward."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(exact) * q.shape[-1] ** -0.5) @ k.to(exact).transpose(-2, -1)
    if key_lengths is not None:
        scores = scores.masked_fill(~key_mask(key_lengths, k.shape[2]), float("-inf"))
    mixed: Tensor = scores.softmax(dim=-1) @ v.to(exact)
    return mixed.to(v.dtype)
