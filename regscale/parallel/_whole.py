"""An engine whose every rank holds the whole model: `single`, and `ddp` around it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from regscale.cluster import Cluster
from regscale.parallel import StepResult, _blocks
from regscale.parallel._compute import Compute, set_determinism
from regscale.parallel._gather import full_state
from regscale.parallel._muon import Matrices
from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._precision import set_precision
from regscale.parallel._turns import turns
from regscale.parallel._update import Updater
from regscale.types import HasBlocks, Shard

Wrap = Callable[[nn.Module], Any]


class Whole:
    """The `Engine` of one device or of equal ones. `wrap` makes what a training step calls."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        config: Compute,
        cluster: Cluster,
        wrap: Wrap = lambda model: model,
    ) -> None:
        assert isinstance(model, HasBlocks), "a backbone names its blocks"
        self.model: Any = model
        self._cluster, self._wrap = cluster, wrap
        set_determinism(on=config.deterministic)
        set_precision(model, config.precision, tf32=config.tf32)
        _blocks.prepare(
            model,
            compiled=config.compile,
            recompute=config.recompute,
            every=config.recompute_every,
        )
        self._updater = Updater(
            optimizer,
            {n: p.detach().view(-1) for n, p in self._trainable()},
            scaled=config.precision == "fp16",
            matrices=Matrices.of(
                model, config.precision, dist.group.WORLD if cluster.world_size > 1 else None
            ),
        )
        self.forward = wrap(model)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        alone = self.forward is self.model
        return nullcontext() if last or alone else self.forward.no_sync()

    def backward(self, loss: Tensor) -> None:
        self._updater.scale(loss).backward()

    def step(self) -> StepResult:
        gradients = {n: None if p.grad is None else p.grad.view(-1) for n, p in self._trainable()}
        result = self._updater.step(gradients)
        for _, parameter in self._trainable():
            parameter.grad = None
        return result

    def rebuild(self) -> None:
        self.forward = self._wrap(self.model)

    def learning_rate(self) -> float:
        return self._updater.learning_rate()

    def shards(self) -> Iterator[Shard]:
        """Ranks share the writing."""
        tensors = list(self._tensors())
        writers = turns((t.numel() for _, t, _ in tensors), self._cluster.world_size)
        for writer, (name, tensor, trainable) in zip(writers, tensors, strict=True):
            yield Shard(
                name=name,
                shape=tuple(tensor.shape),
                start=0,
                stop=tensor.numel(),
                owner=writer == self._cluster.rank,
                master=tensor.detach().view(-1),
                optimizer=self._updater.moments(name),
                trainable=trainable,
            )

    def replicas(self) -> Any:
        return self._cluster.group

    def progress(self) -> dict[str, Any]:
        return self._updater.progress()

    def restore(self, progress: dict[str, Any]) -> None:
        self._updater.restore(progress)

    @contextmanager
    def weights(self, values: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        tensors = {name: tensor for name, tensor, _ in self._tensors()}
        kept = {name: tensor.data for name, tensor in tensors.items()}
        try:
            for name, value in values:
                tensors[name].data = value.view(tensors[name].shape)
            yield
        finally:
            for name, data in kept.items():
                tensors[name].data = data

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        return full_state(self.shards(), self._cluster)

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def _tensors(self) -> Iterator[tuple[str, Tensor, bool]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter, parameter.requires_grad
        for name, buffer in self.model.named_buffers():
            yield name, buffer, False
