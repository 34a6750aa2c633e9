"""Conditioners: a frozen half that encodes a batch and a trainable half inside the backbone."""

from typing import Any, Protocol

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
        """condition -> Embedded of this width."""
        ...

    def parse(self, texts: list[str]) -> Any:
        """What a user typed (`--class`, `--prompt`) as a condition on the CPU."""
        ...

    def examples(self) -> list[str]:
        """A few texts that `parse` takes, for pictures during training."""
        ...
