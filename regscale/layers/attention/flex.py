"""torch's flex attention: a kernel made for the mask, which skips blocks of 128 padded keys.

On CUDA it is compiled; elsewhere torch has only its forward, as the formula that it would compile.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from regscale.layers.attention._setting import Missing, Setting


def missing(setting: Setting) -> Missing | None:
    if setting.device_type != "cuda":
        return Missing("a CUDA device: it has no backward elsewhere", str(setting), "Choose auto.")
    if setting.head_dim < 16:
        return Missing(
            "a head width of 16 or more", str(setting), "Choose auto, or another num_heads."
        )
    return None


def kernel(setting: Setting) -> str:  # noqa: ARG001
    return f"torch {torch.__version__}"


def attend(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None) -> Tensor:
    mask = None if key_lengths is None else _block_mask(key_lengths, q.shape[2], k.shape[2])
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        return _compiled()(q, k, v, block_mask=mask)
    made: Tensor = flex_attention(q, k, v, block_mask=mask)
    return made


def _block_mask(key_lengths: Tensor, num_queries: int, num_keys: int) -> BlockMask:
    def is_key(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return k < key_lengths[b]

    batch, device = len(key_lengths), key_lengths.device
    return create_block_mask(is_key, batch, None, num_queries, num_keys, device=device)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)
