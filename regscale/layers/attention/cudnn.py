"""cuDNN's fused attention, through torch; its backward does not repeat its bits."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from regscale.layers.attention._setting import Missing, Setting, key_mask, needs_tensor_cores

# Earlier ones read beyond their inputs where 128 does not divide the number of queries, as it does
# not divide 257 (pytorch issue 169849).
OLDEST = 91501


def version() -> int:
    """Of the cuDNN that torch has loaded, as 91501 for 9.15.1; 0 where there is none."""
    if torch.version.cuda is None or not torch.backends.cudnn.is_available():
        return 0
    return torch.backends.cudnn.version() or 0


def missing(setting: Setting) -> Missing | None:
    lacking = needs_tensor_cores(setting, widest_head=128)
    if lacking is not None:
        return lacking
    if setting.deterministic:
        return Missing("leave to differ between runs", "deterministic: true", "Choose auto.")
    if version() < OLDEST:
        return Missing(
            f"cuDNN {OLDEST} or later",
            f"{version() or 'none'} with torch {torch.__version__}",
            "Install a newer torch, or choose auto.",
        )
    return None


def kernel(setting: Setting) -> str:  # noqa: ARG001
    return f"cudnn {version()}"


def attend(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None) -> Tensor:
    mask = None if key_lengths is None else key_mask(key_lengths, k.shape[2])
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
