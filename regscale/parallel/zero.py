"""DeepSpeed's ZeRO: moments (1), gradients (2) and weights (3) cut over ranks.

DeepSpeed places, gathers and reduces; the update is ours. It runs in its fp32 mode, where its
masters are the weights themselves, and blocks cast at use: its bf16 mode would round embedders and
the final layer as well, and start from rounded masters.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
from deepspeed.utils import set_z3_leaf_modules

from regscale.cluster import Cluster, meet
from regscale.config import Invalid
from regscale.layers.initial import materialise
from regscale.parallel import StepResult, _blocks
from regscale.parallel._compute import Compute, set_determinism
from regscale.parallel._gather import full_state
from regscale.parallel._mapped import zeros_in
from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._precision import DTYPES, set_precision
from regscale.parallel._swap import swapped
from regscale.parallel._update import Updater
from regscale.parallel._zero_ranges import flat_range, partition, share_masters
from regscale.types import HasBlocks, Shard

# An operator for inference on CPUs, which DeepSpeed would compile at every first start; a process
# that is killed meanwhile leaves a lock that all later ones wait for.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# DeepSpeed calls torch by names that are about to go, and is told so at every step.
OLD_NAMES = r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated"
warnings.filterwarnings("ignore", OLD_NAMES, FutureWarning)

ELEMENTS = 500_000_000  # of a bucket: DeepSpeed's own default


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Compute):
    """`offload: cpu` keeps gradients' shards, moments and masters in the host's memory; `nvme` the
    same with moments in files of `offload_folder`, mapped into memory.

    Under stage 3 autograd keeps what a product read, here a block's weights in the precision of the
    product, until the backward; `recompute` lets go of them.
    """

    stage: Literal[1, 2, 3] = 3
    offload: Literal["none", "cpu", "nvme"] = "none"
    offload_folder: str | None = None  # on a local disk; ranks and runs may share it
    bucket_elements: int = ELEMENTS

    def __post_init__(self) -> None:
        Compute.__post_init__(self)
        if (self.offload == "nvme") != (self.offload_folder is not None):
            raise Invalid(
                "offload_folder",
                "is the place of moments under offload: nvme, and of nothing else",
                found=f"{self.offload_folder} under offload: {self.offload}",
                fix="Give both or neither: engine.offload=nvme engine.offload_folder=/scratch.",
            )


class _Delegate(torch.optim.Optimizer):
    """What DeepSpeed takes for the optimizer. Its step is the engine's, once there is one: when
    DeepSpeed starts it steps once, on zeros."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(list(parameters), {"lr": 0.0})
        self.update: Callable[[], None] = lambda: None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        self.update()


class Zero:
    """The `Engine` of DeepSpeed."""

    def __init__(
        self, model: nn.Module, optimizer: OptimizerConfig, config: Config, cluster: Cluster
    ) -> None:
        self.model: Any = model
        self._cluster, self._stage = cluster, config.stage
        trainable = [p for p in model.parameters() if p.requires_grad]
        delegate = _Delegate(trainable)
        self.forward, *_ = deepspeed.initialize(
            model=model,
            optimizer=delegate,
            config=_deepspeed(config, cluster),
            dist_init_required=False,
        )
        self._zero: Any = self.forward.optimizer
        if config.stage == 3 and config.offload == "none":
            share_masters(self._zero)
        held = [
            (name, span)
            for name, p in model.named_parameters()
            if p.requires_grad
            for span in [flat_range(self._zero, p, config.stage)]
        ]
        self._ranges = dict(held)
        self._flat: Tensor = (
            self._zero.fp32_partitioned_groups_flat
            if config.stage == 3
            else self._zero.single_partition_of_fp32_groups
        )[0]
        masters = {name: self._cut(self._flat.detach(), name) for name in self._ranges}
        self._updater = Updater(
            optimizer,
            masters,
            total=self._total,
            scaled=config.precision == "fp16",
            zeros=torch.zeros_like
            if config.offload_folder is None
            else zeros_in(Path(config.offload_folder)),
        )
        self._masters = masters
        self._used: set[str] = set()
        for name in self._ranges:
            self._notice(name)
        self._result: StepResult | None = None
        delegate.update = self._update

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()  # DeepSpeed is told that step() ends an accumulation

    def backward(self, loss: Tensor) -> None:
        self.forward.backward(self._updater.scale(loss))

    def step(self) -> StepResult:
        """DeepSpeed leaves an update out by itself where the norm of a gradient is not finite."""
        self._result = None
        self.forward.step()
        self._used.clear()
        return self._updater.skip() if self._result is None else self._result

    def rebuild(self) -> None:
        """Nothing: the updater leaves out what does not require a gradient."""

    def learning_rate(self) -> float:
        return self._updater.learning_rate()

    def shards(self) -> Iterator[Shard]:
        for number, (name, tensor, trainable) in enumerate(self._tensors()):
            yield self._shard(number, name, tensor, trainable=trainable)

    def replicas(self) -> Any:
        return None  # weights are gathered from one owner each

    def progress(self) -> dict[str, Any]:
        return self._updater.progress()

    def restore(self, progress: dict[str, Any]) -> None:
        self._updater.restore(progress)
        self._refresh()

    def weights(self, values: Iterable[tuple[str, Tensor]]) -> AbstractContextManager[None]:
        return swapped(self.shards(), values, self._refresh)

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        return full_state(self.shards(), self._cluster)

    def _update(self) -> None:
        gradient = self._flat.grad
        assert gradient is not None, "DeepSpeed fills the gradient of its flat range"
        self._result = self._updater.step(
            {name: self._cut(gradient, name) for name in self._ranges if name in self._used}
        )

    def _notice(self, name: str) -> None:
        """DeepSpeed gives zeros to a weight that takes no part in an update, which is then to keep
        its bits. All ranks use the same weights."""
        parameter = self.model.get_parameter(name)
        parameter.register_post_accumulate_grad_hook(lambda _: self._used.add(name))

    def _total(self, squares: Tensor) -> Tensor:
        if self._cluster.world_size == 1:
            return squares
        sent = squares.to(self._cluster.device)
        dist.all_reduce(sent)
        return sent.to(squares.device)

    def _refresh(self) -> None:
        """Give the model what was written into the masters. Weights that stayed gathered after a
        forward without a backward are let go: they hold the old values."""
        if self._stage == 3:
            self._zero._partition_all_parameters()
            self._zero._reassign_or_swap_out_partitioned_parameters(0)
        else:
            self._zero.update_lp_params()

    def _cut(self, flat: Tensor, name: str) -> Tensor:
        span = self._ranges[name]
        return flat[span.offset : span.offset + span.stop - span.start]

    def _tensors(self) -> Iterator[tuple[str, Tensor, bool]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter, parameter.requires_grad
        for name, buffer in self.model.named_buffers():
            yield name, buffer, False

    def _shard(self, number: int, name: str, tensor: Any, *, trainable: bool) -> Shard:
        """Trained: a range of the flat masters. Frozen under stage 3: DeepSpeed's own cut. Else
        whole on every rank, which take turns at writing."""
        whole = tuple(getattr(tensor, "ds_shape", tensor.shape))
        owner = True
        if name in self._ranges:
            span = self._ranges[name]
            start, stop, master = span.start, span.stop, self._masters[name]
        elif hasattr(tensor, "ds_tensor"):
            start, stop = partition(tensor, self._cluster.rank)
            master = tensor.ds_tensor.detach()[: stop - start]
        else:
            start, stop, master = 0, tensor.numel(), tensor.detach().view(-1)
            owner = number % self._cluster.world_size == self._cluster.rank
        return Shard(
            name=name,
            shape=whole,
            start=start,
            stop=stop,
            owner=owner,
            master=master,
            optimizer=self._updater.moments(name),
            trainable=trainable,
        )


def _deepspeed(config: Config, cluster: Cluster) -> dict[str, Any]:
    """Every value that matters written out: DeepSpeed's defaults move."""
    stage: dict[str, Any] = {
        "stage": config.stage,
        "contiguous_gradients": True,
        "overlap_comm": config.stage > 1 and cluster.device.type == "cuda",
        "reduce_scatter": True,
        "reduce_bucket_size": config.bucket_elements,
        "allgather_bucket_size": config.bucket_elements,
        "round_robin_gradients": False,
    }
    if config.offload != "none":
        stage["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": cluster.device.type == "cuda",
        }
    if config.stage == 3:
        stage |= {
            "sub_group_size": 2**62,
            "memory_efficient_linear": False,  # it replaces torch's own for the whole process
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": config.bucket_elements // 10,
            "stage3_max_live_parameters": 2 * config.bucket_elements,
            "stage3_max_reuse_distance": 2 * config.bucket_elements,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": stage,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
    }


def build(
    config: Config, model: nn.Module, *, optimizer: OptimizerConfig, seed: int, cluster: Cluster
) -> Zero:
    """The engine around a model on the meta device: filled and cut one block at a time."""
    assert isinstance(model, HasBlocks), "a backbone names its blocks"
    if optimizer.rule == "muon":
        raise Invalid(
            "optimizer.rule",
            "of engine zero is adamw or adamw8bit: its flat ranges cut matrices inside rows",
            found="muon",
            fix="Choose adamw, or the engine fsdp2.",
        )
    if optimizer.rule == "adamw8bit" and config.offload == "nvme":
        raise Invalid(
            "engine.offload",
            "is none or cpu for 8-bit moments, which are small",
            found="nvme",
            fix="Choose offload: cpu, or the rule adamw.",
        )
    meet(cluster)
    os.environ["LOCAL_RANK"] = str(cluster.device.index or 0)  # DeepSpeed's name of the device
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    set_determinism(on=config.deterministic)
    set_precision(model, config.precision, tf32=config.tf32)
    if config.stage == 3:
        _fill_in_parts(model, config, seed, cluster)
    else:
        materialise(model, seed=seed, device=cluster.device)
    _blocks.prepare(
        model, compiled=config.compile, recompute=config.recompute, every=config.recompute_every
    )
    return Zero(model, optimizer, config, cluster)


def _fill_in_parts(model: Any, config: Config, seed: int, cluster: Cluster) -> None:
    """Fill and cut blocks one after another. A block is gathered as one; its weights travel in
    the precision that they are used in (DeepSpeed reads `comm_dtype` for that)."""
    names = {module: name for name, module in model.named_modules()}
    units = list(model.low_precision())
    settings = _deepspeed(config, cluster)
    for unit in units:
        materialise(unit, seed=seed, device=cluster.device, prefix=names[unit])
        for parameter in unit.parameters():
            parameter.comm_dtype = DTYPES[config.precision]
        deepspeed.zero.Init(module=unit, config_dict_or_path=settings, dtype=torch.float32)
    materialise(model, seed=seed, device=cluster.device, skip=units)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=torch.float32)
    set_z3_leaf_modules(model, [type(unit) for unit in units])
