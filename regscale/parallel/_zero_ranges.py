"""Where a rank's part of each weight lies in DeepSpeed's flat masters."""

from typing import Any, NamedTuple

import torch.distributed as dist


class Range(NamedTuple):
    """[start, stop) of a parameter, at `offset` of a rank's flat masters."""

    start: int
    stop: int
    offset: int


def share_masters(zero: Any) -> None:
    """Let masters and weights be one storage. DeepSpeed means to, but clones them, since it takes
    a device's name for another device than the device of that name."""
    zero.fp32_partitioned_groups_flat[0].data = zero.fp16_partitioned_groups_flat[0].data


def flat_range(zero: Any, parameter: Any, stage: int) -> Range:
    if stage == 3:
        start, stop = partition(parameter, dist.get_rank())
        return Range(start, stop, zero.grad_position[zero.get_param_id(parameter)][1])
    mapping = parameter._hp_mapping
    if mapping is None:
        return Range(0, 0, 0)
    own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Range(own.start, own.start + own.numel, flat.start)


def partition(parameter: Any, rank: int) -> tuple[int, int]:
    """What of a parameter lies on a rank under stage 3; the last ranks may hold nothing."""
    size, total = parameter.ds_tensor.ds_numel, parameter.ds_numel
    return min(rank * size, total), min((rank + 1) * size, total)
