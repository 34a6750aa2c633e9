"""Which process this is, among how many, and on which device."""

import os
from dataclasses import dataclass

import torch

from regscale.errors import RegscaleError


@dataclass(frozen=True, slots=True)
class Cluster:
    """One process of a run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    job: str = ""  # of the scheduler
    restarts: int = 0  # of that job


def join(device: str = "auto") -> Cluster:
    """This process, from the environment that a launcher sets; alone where none does.

    `auto` takes CUDA, then MPS, then the CPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return Cluster(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        device=_device(device, local_rank),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )


def _device(name: str, local_rank: int) -> torch.device:
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    kind = available[0] if name == "auto" else name.partition(":")[0]
    if kind not in available:
        raise RegscaleError(
            "device",
            f"'{name}' is not to be had on this machine",
            found=", ".join(available),
            fix="Use device=auto.",
        )
    if kind == "cuda" and ":" not in name:
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device(kind if name == "auto" else name)
