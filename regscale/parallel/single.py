"""One device: CPU, CUDA or MPS. The plainest engine, and the reference of the others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regscale.cluster import Cluster
from regscale.config import Invalid
from regscale.layers.initial import materialise
from regscale.parallel import StepResult
from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._optimizer import adamw, clip_factor, learning_rate
from regscale.parallel._precision import Precision, set_precision
from regscale.parallel._scaler import LossScale
from regscale.types import HasBlocks, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`precision` is that of the matrix products in the blocks; weights stay in fp32.

    `tf32` lets CUDA compute the remaining fp32 products in TF32, as the published code does.
    """

    precision: Precision = "fp32"
    compile: bool = False
    tf32: bool = True


class Single:
    """The `Engine` of one device."""

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig, config: Config) -> None:
        assert isinstance(model, HasBlocks), "a backbone names its blocks"
        self.model: Any = model
        self._settings = optimizer
        self._updates = 0
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = adamw(optimizer, parameters)
        device = parameters[0].device
        self._scales_inside = device.type != "mps"
        self._scale = LossScale(device) if config.precision == "fp16" else None
        set_precision(model, config.precision, tf32=config.tf32)
        if config.compile:
            for block in model.blocks:
                block.compile(fullgraph=True)

    def backward(self, loss: Tensor) -> None:
        (loss if self._scale is None else loss * self._scale.value).backward()

    def step(self) -> StepResult:
        """Clipping, loss scale and the skip of a non-finite step happen inside the fused update,
        so the host never waits for the device; Metal's update does not know them."""
        optimizer: Any = self._optimizer
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        scale = gradients[0].new_ones(()) if self._scale is None else self._scale.value
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True) / scale
        applied = norm.isfinite()
        factor = clip_factor(norm, self._settings.max_grad_norm) / scale
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self._settings, self._updates)
        if self._scales_inside:
            optimizer.grad_scale, optimizer.found_inf = 1 / factor, (~applied).float()
            optimizer.step()
        elif bool(applied):
            torch._foreach_mul_(gradients, factor)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self._scale is not None:
            self._scale.update(applied)
        self._updates += 1
        return StepResult(applied, norm)

    def learning_rate(self) -> float:
        return learning_rate(self._settings, self._updates)

    def shards(self) -> Iterator[Shard]:
        for name, tensor, trainable in self._tensors():
            state = (
                self._optimizer.state.get(tensor, {}) if isinstance(tensor, nn.Parameter) else {}
            )
            yield Shard(
                name=name,
                shape=tuple(tensor.shape),
                start=0,
                stop=tensor.numel(),
                owner=True,
                master=tensor.detach().reshape(-1),
                optimizer={k: v.reshape(-1) for k, v in state.items() if k != "step"},
                trainable=trainable,
            )

    def progress(self) -> dict[str, Any]:
        steps = {
            name: float(self._optimizer.state[p]["step"])
            for name, p in self.model.named_parameters()
            if p in self._optimizer.state
        }
        scale = None if self._scale is None else self._scale.state()
        return {"updates": self._updates, "optimizer_steps": steps, "loss_scale": scale}

    def restore(self, progress: dict[str, Any]) -> None:
        self._updates = progress["updates"]
        for name, p in self.model.named_parameters():
            if p in self._optimizer.state:
                self._optimizer.state[p]["step"].fill_(progress["optimizer_steps"][name])
        if self._scale is not None and progress["loss_scale"] is not None:
            self._scale.restore(progress["loss_scale"])

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
        for name, tensor, _ in self._tensors():
            yield name, tensor.detach().cpu()

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def _tensors(self) -> Iterator[tuple[str, Tensor, bool]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter, parameter.requires_grad
        for name, buffer in self.model.named_buffers():
            yield name, buffer, False


def build(
    config: Config, model: nn.Module, *, optimizer: OptimizerConfig, seed: int, cluster: Cluster
) -> Single:
    """The engine around a model on the meta device: storage and initial values come here."""
    if cluster.world_size != 1:
        raise Invalid(
            "engine.kind",
            "'single' is for one process",
            found=f"{cluster.world_size} processes",
            fix="Start one process, or choose an engine for several.",
        )
    materialise(model, seed=seed, device=cluster.device)
    return Single(model, optimizer, config)
