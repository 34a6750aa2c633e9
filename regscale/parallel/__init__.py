"""Engines: how a model is placed, trained and read, on one device or on many."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._precision import DTYPES, Precision, set_precision
from regscale.types import Shard

__all__ = ["DTYPES", "Engine", "OptimizerConfig", "Precision", "StepResult", "set_precision"]


class StepResult(NamedTuple):
    """What one update did."""

    applied: Tensor  # () bool: False where a non-finite gradient was skipped
    grad_norm: Tensor  # () before clipping


class Engine(Protocol):
    """A kind is a file here with `Config` and `build`. Only engines know how a model is cut."""

    model: Any  # the backbone itself: names, shapes, sampling
    forward: Any  # what a training step calls

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward of each micro-batch of an update."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch."""
        ...

    def step(self) -> StepResult:
        """Clip, update, advance the schedule, clear."""
        ...

    def rebuild(self) -> None:
        """Parameters were frozen: they are left out from the next update on. Collective."""
        ...

    def replicas(self) -> Any:
        """The group of ranks that hold the same shards as this one; None where there is none."""
        ...

    def learning_rate(self) -> float:
        """Of the next update."""
        ...

    def shards(self) -> Iterator[Shard]:
        """What this rank holds, as live fp32 tensors: writing into them changes the model."""
        ...

    def progress(self) -> dict[str, Any]:
        """Small values that go with the shards: updates done, scaler state. JSON."""
        ...

    def restore(self, progress: dict[str, Any]) -> None:
        """Take `progress` back, after the shards were written: low-precision copies follow."""
        ...

    def weights(self, values: Iterable[tuple[str, Tensor]]) -> AbstractContextManager[None]:
        """The model computes with these shards' values until the end of the block. Collective."""
        ...

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the model on every rank's CPU, one at a time. Collective."""
        ...
