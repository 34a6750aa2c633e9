"""Attention behind one signature; which backend computes it is a fixed rule, never a timing."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Backend = Literal["auto", "sdpa", "math"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def attention(
    q: Tensor,  # (B, heads, Lq, head_dim)
    k: Tensor,  # (B, heads, Lk, head_dim)
    v: Tensor,  # (B, heads, Lk, head_dim)
    *,
    key_lengths: Tensor | None = None,  # (B,): keys from here on are padding
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v: (B, heads, Lq, head_dim)."""
    return _IMPLEMENTATIONS[backend](q, k, v, _mask(key_lengths, k.shape[2]))


def _mask(key_lengths: Tensor | None, num_keys: int) -> Tensor | None:
    if key_lengths is None:
        return None
    places = torch.arange(num_keys, device=key_lengths.device)
    return (places < key_lengths[:, None])[:, None, None, :]  # (B, 1, 1, Lk)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The formula itself with an fp32 softmax: what the others are compared with."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed: Tensor = scores.softmax(dim=-1) @ v.float()
    return mixed.to(v.dtype)


_IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "auto": _sdpa,
    "sdpa": _sdpa,
    "math": _math,
}
