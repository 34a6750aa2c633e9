"""What every engine's config says about computing, beside where weights lie."""

import os
from dataclasses import dataclass

import torch

from regscale.config import Invalid
from regscale.parallel import _blocks
from regscale.parallel._precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """`precision` is that of the matrix products in the blocks; weights stay in fp32.

    `tf32` lets CUDA compute the remaining fp32 products in TF32, as the published code does.
    `recompute` gives activation memory back: each `recompute_every`-th block is computed again in
    the backward, whole (`full`) or without its matrix products and attention (`selective`).
    `deterministic` makes CUDA repeat bits, at some cost.
    """

    precision: Precision = "fp32"
    compile: bool = False
    tf32: bool = True
    recompute: _blocks.Recompute = "none"
    recompute_every: int = 1
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.recompute_every < 1:
            raise Invalid(
                "recompute_every",
                "is positive",
                found=self.recompute_every,
                fix="1: each block.",
            )


def set_determinism(*, on: bool) -> None:
    """Whether every operator has to give the same bits again. cuBLAS does with workspaces of a
    fixed size alone, and torch refuses to call it with others."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
