"""A target whose features only the data can hold: its encoder is unknown or not at hand.

A run of it samples anywhere, and trains on shards or folders that hold the target's features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.types import Features


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the stored features look like."""

    width: int = 768
    num_tokens: int = 1
    patch_size: int | None = 16  # pixels a patch covers on each side; null: no patches are stored
    identity: str = "stored"  # of the encoder that made them, as their index names it

    def __post_init__(self) -> None:
        for key in ("width", "num_tokens", "patch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise Invalid(key, "is a positive number", found=value, fix="Give 1 or more.")


class Stored:
    """The target; it computes nothing."""

    def __init__(self, config: Config) -> None:
        self.width, self.num_tokens = config.width, config.num_tokens
        self.identity, self.patch_size = config.identity, config.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of the stored patches of an image of this size."""
        if self.patch_size is None:
            return None
        return height // self.patch_size, width // self.patch_size

    def __call__(self, images: Tensor) -> Features:
        raise RegscaleError(
            "targets: kind stored",
            "takes its features from the data and cannot compute them",
            found=f"a batch of {len(images)} images without features of this target",
            fix="Store the features with the data, or choose the kind of the encoder.",
        )

    def to(self, device: torch.device) -> "Stored":
        """Itself: there is nothing to move."""
        del device
        return self


def build(config: Config) -> Stored:
    return Stored(config)
