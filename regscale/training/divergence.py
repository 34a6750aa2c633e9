"""Ranks that hold the same weights hold the same bits; memory that flips one makes them differ.

A checksum of a tensor is the sum of its bits as int32, modulo 2^32: one flipped bit changes it by a
power of two, and the order of the sum does not matter.
"""

from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor

from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.parallel import Engine


def check(engine: Engine, cluster: Cluster, step: int) -> None:
    """Raise on all ranks where copies of the weights differ. Collective; without copies, nothing.

    Costs one read of the weights and an exchange of 16 bytes for each tensor.
    """
    if engine.replicas() is not None:
        cluster.together(lambda: _compare(engine, step))


def _compare(engine: Engine, step: int) -> None:
    sums, group = checksums(engine), engine.replicas()
    values = torch.stack(list(sums.values())).long().cpu()  # (T,) of the T tensors
    extremes = torch.stack([values, -values])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    high, low = extremes[0], -extremes[1]
    differing = (high != low).nonzero().flatten().tolist()
    if differing:
        first = differing[0]
        raise _diverged(list(sums)[first], _everywhere(values[first], group), len(differing), step)


@torch.no_grad()
def checksums(engine: Engine) -> dict[str, Tensor]:
    """Of every range that this rank holds: () int32, on its device."""
    return {
        shard.name: shard.master.view(torch.int32).sum(dtype=torch.int32)
        for shard in engine.shards()
    }


def _everywhere(value: Tensor, group: dist.ProcessGroup) -> dict[int, int]:
    """The value of each rank of a group, by its rank in the run."""
    values = [torch.empty_like(value) for _ in range(group.size())]
    dist.all_gather(values, value, group=group)
    return dict(zip(dist.get_process_group_ranks(group), map(int, values), strict=True))


def _diverged(name: str, sums: dict[int, int], count: int, step: int) -> RegscaleError:
    usual, votes = Counter(sums.values()).most_common(1)[0]
    other = [str(rank) for rank, value in sums.items() if value != usual]
    same = [str(rank) for rank, value in sums.items() if value == usual]
    if 2 * votes > len(sums):
        found = f"'{name}' on rank {', '.join(other)} is not what rank {', '.join(same)} holds"
    else:
        found = f"'{name}' differs between rank {', '.join(same)} and rank {', '.join(other)}"
    more = f", and {count - 1} more" if count > 1 else ""
    return RegscaleError(
        f"step {step:,}",
        "ranks that hold the same weights have come apart",
        found=found + more,
        fix="Resume from a checkpoint of before this step; where it happens again, look at the "
        "memory and the device of that rank's node.",
    )
