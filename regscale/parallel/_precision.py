"""The one precision policy of every engine and of sampling (docs/numerics.md)."""

from typing import Literal

import torch

from regscale.types import HasBlocks

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(model: HasBlocks, precision: Precision, *, tf32: bool) -> None:
    """Blocks and projectors compute from weights in `precision`, and their matrix products in it;
    the others in fp32, by CUDA in TF32 where allowed."""
    for part in model.low_precision():
        for layer in part.modules():
            if hasattr(layer, "compute_dtype"):
                layer.compute_dtype = DTYPES[precision]  # type: ignore[assignment]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
