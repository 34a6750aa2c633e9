"""Weights, gradients and moments cut over ranks by torch's `fully_shard`, block by block.

With `shard_group` smaller than the world, groups of that many ranks hold a copy each (HSDP).
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from regscale.cluster import Cluster, meet
from regscale.config import Invalid
from regscale.layers.initial import materialise
from regscale.parallel import StepResult, _blocks
from regscale.parallel._compute import Compute, set_determinism
from regscale.parallel._gather import full_state
from regscale.parallel._muon import Matrices
from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._precision import DTYPES, Precision, set_precision
from regscale.parallel._swap import swapped
from regscale.parallel._turns import turns
from regscale.parallel._update import Updater
from regscale.types import HasBlocks, Shard

# Of what happens where an output is changed in place, which nothing here does.
warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(\w+\) returned a view tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Compute):
    """`reshard` frees the gathered weights of a block after its forward; without, memory is spent
    to gather once a step instead of twice."""

    shard_group: int | None = None  # ranks that share one copy; null: all
    reshard: bool = True

    def __post_init__(self) -> None:
        Compute.__post_init__(self)
        if self.precision == "fp16":
            raise Invalid(
                "precision",
                "of fsdp2 is fp32 or bf16",
                found="fp16",
                fix="Choose bf16, or fp16 with single, ddp or zero.",
            )


class Fsdp2:
    """The `Engine` of sharded weights: fp32 shards, gathered in `precision`, reduced in fp32."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        cluster: Cluster,
        mesh: DeviceMesh,
        precision: Precision,
    ) -> None:
        self.model: Any = model
        self.forward: Any = model
        self._cluster = cluster
        self._copies = mesh.get_group("copy") if mesh.ndim == 2 else None
        group, size = mesh.get_group("shard"), mesh["shard"].size()

        def total(squares: Tensor) -> Tensor:
            if size > 1:
                dist.all_reduce(squares, group=group)
            return squares

        masters = {n: _local(p.detach()) for n, p in self._trainable()}
        matrices = Matrices.of(model, precision, group if size > 1 else None, cut=True)
        self._updater = Updater(optimizer, masters, total=total, matrices=matrices)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()  # each micro-batch is reduced at once: whole gradients are not kept

    def backward(self, loss: Tensor) -> None:
        self._updater.scale(loss).backward()

    def step(self) -> StepResult:
        gradients = {n: None if p.grad is None else _local(p.grad) for n, p in self._trainable()}
        result = self._updater.step(gradients)
        for _, parameter in self._trainable():
            parameter.grad = None
        return result

    def rebuild(self) -> None:
        """Nothing: a module without gradients is left out by itself."""

    def learning_rate(self) -> float:
        return self._updater.learning_rate()

    def shards(self) -> Iterator[Shard]:
        """Copies (HSDP) share the writing, and all ranks that of what is not cut."""
        copy, copies = (self._copies.rank(), self._copies.size()) if self._copies else (0, 1)
        parameters = list(self.model.named_parameters())
        writers = turns((p.numel() for _, p in parameters), copies)
        for writer, (name, tensor) in zip(writers, parameters, strict=True):
            start, local = _start(tensor), _local(tensor.detach())
            yield Shard(
                name=name,
                shape=tuple(tensor.shape),
                start=start,
                stop=start + local.numel(),
                owner=writer == copy,
                master=local,
                optimizer=self._updater.moments(name),
                trainable=tensor.requires_grad,
            )
        for number, (name, tensor) in enumerate(self.model.named_buffers()):
            yield Shard(
                name=name,
                shape=tuple(tensor.shape),
                start=0,
                stop=tensor.numel(),
                owner=number % self._cluster.world_size == self._cluster.rank,
                master=tensor.detach().view(-1),
                optimizer={},
                trainable=False,
            )

    def replicas(self) -> Any:
        return self._copies

    def progress(self) -> dict[str, Any]:
        return self._updater.progress()

    def restore(self, progress: dict[str, Any]) -> None:
        self._updater.restore(progress)
        self._forget()

    def weights(self, values: Iterable[tuple[str, Tensor]]) -> AbstractContextManager[None]:
        return swapped(self.shards(), values, self._forget)

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        return full_state(self.shards(), self._cluster)

    def _forget(self) -> None:
        """Free gathered weights: the next forward gathers them anew."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _trainable(self) -> Iterator[tuple[str, Any]]:
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)


def _local(tensor: Any) -> Tensor:
    """This rank's part of a sharded tensor, flat and live."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.view(-1)


def _start(tensor: Any) -> int:
    """Where this rank's part begins in the flattened tensor, which is cut by rows."""
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    row = prod(tensor.shape[1:])
    start: int = min(offset[0] * row, tensor.numel()) if prod(shape) else tensor.numel()
    return start


def _mesh(config: Config, cluster: Cluster) -> DeviceMesh:
    kind, size = cluster.device.type, config.shard_group or cluster.world_size
    if cluster.world_size % size:
        raise Invalid(
            "engine.shard_group",
            "divides the number of processes",
            found=f"{size} of {cluster.world_size}",
            fix="Choose a divisor, such as the devices of a node, or null.",
        )
    if size == cluster.world_size:
        return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    shape = (cluster.world_size // size, size)
    return init_device_mesh(kind, shape, mesh_dim_names=("copy", "shard"))


def build(
    config: Config, model: nn.Module, *, optimizer: OptimizerConfig, seed: int, cluster: Cluster
) -> Fsdp2:
    """The engine around a model on the meta device: filled and sharded one block at a time."""
    assert isinstance(model, HasBlocks), "a backbone names its blocks"
    meet(cluster)
    mesh = _mesh(config, cluster)
    set_determinism(on=config.deterministic)
    set_precision(model, config.precision, tf32=config.tf32)
    _blocks.prepare(
        model, compiled=config.compile, recompute=config.recompute, every=config.recompute_every
    )
    names = {module: name for name, module in model.named_modules()}
    low = MixedPrecisionPolicy(
        param_dtype=DTYPES[config.precision],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    units = list(model.low_precision())
    for unit in units:
        materialise(unit, seed=seed, device=cluster.device, prefix=names[unit])
        fully_shard(unit, mesh=mesh, mp_policy=low, reshard_after_forward=config.reshard)
    materialise(model, seed=seed, device=cluster.device, skip=units)
    fully_shard(model, mesh=mesh, mp_policy=plain, reshard_after_forward=config.reshard)
    return Fsdp2(model, optimizer, cluster, mesh, config.precision)
