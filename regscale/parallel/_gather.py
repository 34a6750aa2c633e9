"""A model in one place, from the ranges that ranks hold."""

from collections.abc import Iterable, Iterator
from math import prod

import torch
from torch import Tensor

from regscale.cluster import Cluster
from regscale.types import Shard


def full_state(shards: Iterable[Shard], cluster: Cluster) -> Iterator[tuple[str, Tensor]]:
    """Every tensor on every rank's CPU, one at a time. Collective."""
    for shard in shards:
        own = (shard.start, shard.stop, shard.master.detach().cpu()) if shard.owner else None
        whole = torch.empty(prod(shard.shape), dtype=shard.master.dtype)
        for part in cluster.gather(own):
            if part is not None:
                start, stop, values = part
                whole[start:stop] = values
        yield shard.name, whole.reshape(shard.shape)
