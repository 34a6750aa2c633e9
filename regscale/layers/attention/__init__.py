"""Attention behind one signature; which backend computes it is a fixed rule, never a timing."""

import logging
from functools import cache

import torch
from torch import Tensor

from regscale.layers.attention._choice import (
    BACKENDS,
    MODULES,
    Backend,
    Choice,
    available,
    choose,
    decide,
)
from regscale.layers.attention._setting import Setting, constant

__all__ = [
    "BACKENDS",
    "Backend",
    "Choice",
    "Setting",
    "attention",
    "available",
    "choose",
    "decide",
    "resolve",
]

log = logging.getLogger(__name__)


def attention(
    q: Tensor,  # (B, heads, Lq, head_dim)
    k: Tensor,  # (B, heads, Lk, head_dim)
    v: Tensor,  # (B, heads, Lk, head_dim)
    *,
    key_lengths: Tensor | None = None,  # (B,) of 1 to Lk: keys from here on are padding
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v: (B, heads, Lq, head_dim).

    Its backward repeats its bits where torch.use_deterministic_algorithms(True) asks for it.
    """
    chosen = _chosen(
        backend,
        q.device,
        q.dtype,
        q.shape[-1],
        key_lengths is not None,
        torch.are_deterministic_algorithms_enabled(),
    )
    made: Tensor = MODULES[chosen].attend(q, k, v, key_lengths)
    return made


def resolve(
    backend: Backend,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    has_lengths: bool = False,
) -> Choice:
    """What `attention` uses for such inputs, logged: for the start of a run and its checkpoint."""
    setting = Setting.of(device, dtype, head_dim=head_dim, has_lengths=has_lengths)
    choice = decide(backend, setting)
    log.info("%s", choice)
    return choice


@constant
def _chosen(
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    has_lengths: bool,
    deterministic: bool,
) -> str:
    """Decided once for each kind of call; to a compiler a constant."""
    return _remembered(backend, device, dtype, head_dim, has_lengths, deterministic)


@cache
def _remembered(
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    has_lengths: bool,
    deterministic: bool,  # noqa: ARG001  # read again by Setting.of: here it parts the memories
) -> str:
    if device.type == "meta":  # there are only shapes, and FLOPs to count
        return "sdpa"
    setting = Setting.of(device, dtype, head_dim=head_dim, has_lengths=has_lengths)
    return decide(backend, setting).backend
