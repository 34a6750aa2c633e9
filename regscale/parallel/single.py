"""One device: CPU, CUDA or MPS. The plainest engine, and the reference of the others."""

from dataclasses import dataclass

from torch import nn

from regscale.cluster import Cluster
from regscale.config import Invalid
from regscale.layers.initial import materialise
from regscale.parallel._compute import Compute
from regscale.parallel._optimizer import Config as OptimizerConfig
from regscale.parallel._whole import Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Compute):
    """Nothing besides what every engine has."""


def build(
    config: Config, model: nn.Module, *, optimizer: OptimizerConfig, seed: int, cluster: Cluster
) -> Whole:
    """The engine around a model on the meta device: storage and initial values come here."""
    if cluster.world_size != 1:
        raise Invalid(
            "engine.kind",
            "'single' is for one process",
            found=f"{cluster.world_size} processes",
            fix="Start one process, or choose ddp, fsdp2 or zero.",
        )
    materialise(model, seed=seed, device=cluster.device)
    return Whole(model, optimizer, config, cluster)
