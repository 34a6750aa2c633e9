"""Conditioners: a frozen half that encodes a batch and a trainable half inside the backbone."""

from typing import Any, Protocol

import torch
from torch import nn

from regscale.types import Batch


class Conditioner(Protocol):
    """A kind is a file here with `Config` and `build(config) -> Conditioner`."""

    slot: str  # the attribute (so the parameter names) of the embedder in the model
    num_classes: int | None  # labels lie below; None: no labels are read

    def encode(self, batch: Batch) -> Any:
        """The condition of each sample, a NamedTuple of tensors on the batch's device."""
        ...

    def null(self, like: Any) -> Any:
        """No condition, in the same shapes."""
        ...

    def embedder(self, width: int) -> nn.Module:
        """An `Embedder` of conditions to this width; of several conditions, a ModuleDict of them
        by slot."""
        ...

    def blank(self, size: int) -> Any:
        """Conditions of the right shapes on the meta device: nothing is loaded."""
        ...

    def to(self, device: torch.device) -> "Conditioner":
        """The same conditioner, its frozen half on a device."""
        ...

    def parse(self, texts: list[str]) -> Any:
        """What a user typed (`--class`, `--prompt`) as a condition."""
        ...

    def examples(self) -> list[str]:
        """A few texts that `parse` takes, for pictures during training."""
        ...
