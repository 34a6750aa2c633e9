"""The whole model on every rank, gradients averaged while the backward runs (torch's DDP)."""

from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regscale.cluster import Cluster, meet
from regscale.layers.initial import materialise
from regscale.parallel._compute import Compute
from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._whole import Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Compute):
    """Without `find_unused` torch orders its buckets anew after the first step of a process, and a
    resumed run on more than two ranks does not repeat its bits: sums of more than two numbers
    depend on their place in a bucket. Nor may a weight take no part in a step then."""

    find_unused: bool = True
    bucket_mib: float = 25.0


def build(
    config: Config, model: nn.Module, *, optimizer: OptimizerConfig, seed: int, cluster: Cluster
) -> Whole:
    """The engine around a model on the meta device. Every rank makes the same initial values."""
    meet(cluster)
    materialise(model, seed=seed, device=cluster.device)

    def wrap(module: nn.Module) -> DistributedDataParallel:
        wrapped = DistributedDataParallel(
            module,
            init_sync=False,
            bucket_cap_mb=config.bucket_mib,
            find_unused_parameters=config.find_unused,
            gradient_as_bucket_view=True,
        )
        wrapped.broadcast_buffers = False  # torch deprecates the argument of that name
        return wrapped

    return Whole(model, optimizer, config, cluster, wrap)
