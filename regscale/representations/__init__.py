"""Targets: frozen vision models whose tokens are entangled and whose features are aligned with."""

from typing import Protocol

import torch
from torch import Tensor

from regscale.types import Features


class Target(Protocol):
    """A kind is a file here with `Config` and `build(config) -> Target`."""

    width: int  # R
    num_tokens: int  # K

    @property
    def identity(self) -> str:
        """Of encoder and preprocessing."""
        ...

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of patches for images of this size; None without patches."""
        ...

    def __call__(self, images: Tensor) -> Features:
        """Features of (B, 3, SH, SW) uint8 images, fp32; resizes and normalises by itself."""
        ...

    def to(self, device: torch.device) -> "Target":
        """The same target on a device."""
        ...
