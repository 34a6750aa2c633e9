"""The whole model on every rank, gradients averaged while the backward runs (torch's DDP)."""

from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regscale.cluster import Cluster, meet
from regscale.layers.initial import materialise
from regscale.parallel._compute import Compute
from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._whole import Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Compute):
    """`find_unused` is for models in which some weights take no part in a step; it costs time."""

    find_unused: bool = False
    bucket_mib: float = 25.0


def build(
    config: Config, model: nn.Module, *, optimizer: OptimizerConfig, seed: int, cluster: Cluster
) -> Whole:
    """The engine around a model on the meta device. Every rank makes the same initial values."""
    meet(cluster)
    materialise(model, seed=seed, device=cluster.device)
    wrap = partial(
        DistributedDataParallel,
        broadcast_buffers=False,
        init_sync=False,
        bucket_cap_mb=config.bucket_mib,
        find_unused_parameters=config.find_unused,
        gradient_as_bucket_view=True,
    )
    return Whole(model, optimizer, config, cluster, wrap)
