"""What all ranks do at a step boundary: one rank's wish to stop becomes everyone's."""

from typing import Any

import torch
import torch.distributed as dist

from regscale.cluster import Cluster

GO_ON = 0
LOST = 10_000  # another job writes to the run folder


class Boundary:
    """The largest wish of any rank; among several ranks it is known one step later.

    The exchange runs over the CPU beside the step, so no rank waits for it on the device.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._group = cluster.group
        self._under_way: tuple[torch.Tensor, Any] | None = None

    def __call__(self, wish: int) -> int:
        """Every rank calls this once a step."""
        if self._group is None:
            return wish
        value = torch.tensor([wish])
        work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group, async_op=True)
        before, self._under_way = self._under_way, (value, work)
        return _read(before)

    def close(self) -> int:
        """The last exchange, which nobody has read."""
        before, self._under_way = self._under_way, None
        return _read(before)


def _read(exchange: tuple[torch.Tensor, Any] | None) -> int:
    if exchange is None:
        return GO_ON
    value, work = exchange
    work.wait()
    return int(value)
