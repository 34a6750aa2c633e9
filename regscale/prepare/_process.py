"""Which of the processes that share a command this one is."""

import os
from typing import NamedTuple

from regscale.errors import RegscaleError


class Process(NamedTuple):
    """This process among those that share the shards."""

    rank: int
    world_size: int
    local_rank: int


def this_process() -> Process:
    """From torchrun's variables, or from Slurm's inside a step; alone without either."""
    if "RANK" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_STEP_NUM_TASKS" in os.environ:  # by srun; a batch script itself is one process
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Process(0, 1, 0)
    rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in names)
    if not 0 <= rank < world_size:
        raise RegscaleError(
            f"prepare: {names[0]} and {names[1]}",
            "are a process and the number of processes",
            found=f"{os.environ.get(names[0])} and {os.environ.get(names[1])}",
            fix="Start it with torchrun or srun, or unset both.",
        )
    return Process(rank, world_size, local_rank)
