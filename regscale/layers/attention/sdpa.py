"""torch's own attention without cuDNN: flash where it can, else memory-efficient, else plain.

Under deterministic algorithms the backward of all three repeats its bits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from regscale.layers.attention._setting import Missing, Setting, key_mask

# Left alone, torch's order depends on device, cuDNN version and environment.
ORDER = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def missing(setting: Setting) -> Missing | None:  # noqa: ARG001
    return None


def kernel(setting: Setting) -> str:  # noqa: ARG001
    return f"torch {torch.__version__}"


def attend(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None) -> Tensor:
    mask = None if key_lengths is None else key_mask(key_lengths, k.shape[2])
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with sdpa_kernel(ORDER, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
