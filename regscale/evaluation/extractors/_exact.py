"""fp32 that is fp32: published features were made without TF32 and autocast. And float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Products and convolutions in their inputs' precision, whatever the caller computes in.

    TF32 moves features in their fourth digit.
    """
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    kept = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for flag, value in zip(flags, kept, strict=True):
            flag.allow_tf32 = value


def float64(values: Tensor) -> Tensor:
    """Where they are, or on the CPU from MPS, which has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()
