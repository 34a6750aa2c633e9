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

# Kept by `selective`: what costs most to compute again for the memory it takes.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def prepare(model: HasBlocks, *, compiled: bool, recompute: Recompute, every: int) -> None:
    """Wrap the forward of each block: compiled inside, recomputed in the backward outside."""
    for number, block in enumerate(model.blocks):
        forward: Any = block.forward
        if compiled:
            forward = torch.compile(forward, fullgraph=True)
        if recompute != "none" and number % every == 0:
            options: dict[str, Any] = {}
            if recompute == "selective":
                options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep)
            forward = partial(checkpoint, forward, use_reentrant=False, **options)
        block.forward = forward


def _keep(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001
    kept = operator in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
