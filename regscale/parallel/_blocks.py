"""What any engine may do to the blocks of a model: recompute activations, and compile.

Both wrap a block's `forward`, inside the hooks by which engines gather and free its weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from regscale.types import HasBlocks

Recompute = Literal["none", "full", "selective"]

# Kept by `selective`: what costs most to compute again for the memory it takes. By name, since
# packages for attention are known to torch only once they are imported.
_KEPT = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_",  # flash, efficient, cudnn
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_",
    "flash_attn_3::",
)


def prepare(model: HasBlocks, *, compiled: bool, recompute: Recompute, every: int) -> None:
    """Wrap the forward of each block. `selective` goes inside of what is compiled, for the compiler
    chooses what is kept; `full` outside, so that nothing of a block is kept but its inputs."""
    for number, block in enumerate(model.blocks):
        forward: Any = block.forward
        chosen = recompute if number % every == 0 else "none"
        if chosen == "selective":
            contexts = partial(create_selective_checkpoint_contexts, _keep)
            forward = partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
        if compiled:
            forward = torch.compile(forward, fullgraph=True)
        if chosen == "full":
            forward = partial(checkpoint, forward, use_reentrant=False)
        block.forward = forward


def _keep(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001
    kept = operator.name().startswith(_KEPT)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
