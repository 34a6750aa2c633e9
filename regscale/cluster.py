"""Which process this is, among how many, on which device, and what the processes tell each other.

Everything here goes over the CPU (gloo): small values at a start, a report or a save. What a step
needs travels inside the engines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from regscale.errors import RegscaleError

T = TypeVar("T")
START_SECONDS = 1800.0  # until a process that does not come to a meeting counts as lost


@dataclass(frozen=True, slots=True)
class Cluster:
    """One process of a run. Methods are collective: every process calls them, in one order."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    job: str = ""  # of the scheduler
    restarts: int = 0  # of that job
    address: str = "127.0.0.1"  # where rank 0 listens
    port: int = 29500
    group: Any = None  # gloo, for control; None when alone

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of every rank, on every rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; the error that it meets is raised everywhere."""
        box: list[Any] = [None]
        if self.first:
            try:
                box = [(make(), None)]
            except RegscaleError as error:
                box = [(None, error)]
        if self.group is not None:
            dist.broadcast_object_list(box, src=0, group=self.group)
        value: T
        value, failure = box[0]
        if failure is not None:
            raise failure
        return value

    def together(self, make: Callable[[], T]) -> T:
        """`make()` on every rank; where it fails on one, its error is raised on all."""
        made: list[T] = []
        own: RegscaleError | None = None
        try:
            made.append(make())
        except RegscaleError as error:
            own = error
        met = [each for each in self.gather(own) if each is not None]
        if met:
            raise own or met[0]
        return made[0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, on the CPU."""
        values = values.detach().cpu().double()
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values / self.world_size

    def barrier(self) -> None:
        """Wait for all."""
        if self.group is not None:
            dist.barrier(group=self.group)


class Place(NamedTuple):
    """Which process this is, as the environment says."""

    rank: int
    world_size: int
    local_rank: int
    slurm: bool


def place() -> Place:
    """From what torchrun or Slurm sets; alone where neither does.

    Slurm counts inside a step only (srun): the batch script itself is one process.
    """
    env = os.environ
    slurm = "RANK" not in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    names = (
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        if slurm
        else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    rank, size, local = (int(env.get(n, d)) for n, d in zip(names, "010", strict=True))
    return Place(rank, size, local, slurm)


def join(device: str = "auto") -> Cluster:
    """This process on its device. `auto` takes CUDA, then MPS, then the CPU."""
    env, here = os.environ, place()
    job, restarts = env.get("SLURM_JOB_ID", ""), int(env.get("SLURM_RESTART_COUNT", "0"))
    return Cluster(
        rank=here.rank,
        world_size=here.world_size,
        local_rank=here.local_rank,
        device=_device(device, here.local_rank),
        job=job,
        restarts=restarts,
        address=env.get("MASTER_ADDR") or (_first_node(env) if here.slurm else "127.0.0.1"),
        port=int(env.get("MASTER_PORT") or _port(int(job or "9500"), restarts)),
    )


def connect(cluster: Cluster, *, timeout_seconds: float = START_SECONDS) -> Cluster:
    """The same process with a line to the others, where there are others."""
    if cluster.world_size == 1:
        return cluster
    meet(cluster, timeout_seconds=timeout_seconds)
    timeout = timedelta(seconds=timeout_seconds)
    return replace(cluster, group=dist.new_group(backend="gloo", timeout=timeout))


def meet(cluster: Cluster, *, timeout_seconds: float = START_SECONDS) -> None:
    """Torch's own process group, which engines use; also alone. Harmless where there is one."""
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if cluster.device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(
            backend,
            store=_store(cluster, timeout),
            rank=cluster.rank,
            world_size=cluster.world_size,
            timeout=timeout,
        )
    except (dist.DistError, RuntimeError) as error:
        raise RegscaleError(
            f"{cluster.address}:{cluster.port}",
            f"rank {cluster.rank} of {cluster.world_size} cannot meet the others there",
            found=str(error).splitlines()[0],
            fix="See that all processes run and reach rank 0's node; MASTER_PORT chooses "
            "another port where this one is in use.",
        ) from error


def tighten(cluster: Cluster, *, step_seconds: float, control_seconds: float) -> None:
    """From here on a collective that takes longer has failed: one of a step, or of control, in
    which processes wait while another evaluates or saves."""
    if cluster.group is not None:
        for group, seconds in ((None, step_seconds), (cluster.group, control_seconds)):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def _store(cluster: Cluster, timeout: timedelta) -> Any:
    if cluster.world_size == 1:
        return torch._C._distributed_c10d.HashStore()
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = torch._C._distributed_c10d.TCPStore(
        cluster.address,
        cluster.port,
        cluster.world_size,
        is_master=cluster.first and not agent,
        timeout=timeout,
        multi_tenant=True,
    )
    return torch._C._distributed_c10d.PrefixStore(_start(cluster), store)


def _start(cluster: Cluster) -> str:
    """Of which start of which job this process is one: the store of torchrun outlives a restart of
    its ranks, and two jobs of one node may be given one port."""
    env = os.environ
    job = env.get("TORCHELASTIC_RUN_ID", cluster.job)
    return f"{job}/{cluster.restarts}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _port(job: int, restarts: int) -> int:
    """Below those that systems give out by themselves. Jobs of one node meet at ports of their own,
    and a job that starts again does not wait for a socket of the time before."""
    return 20_000 + (job + 101 * restarts) % 10_000


def _first_node(env: Mapping[str, str]) -> str:
    """The first host of Slurm's compressed list: `n[03-05,9],m1` begins with n03."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "127.0.0.1")
    host = re.match(r"([^,[]*)(?:\[(\d+)[^]]*\])?([^,]*)", nodes)
    return "".join(part or "" for part in host.groups()) if host else nodes


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
        local_rank %= torch.cuda.device_count()  # Slurm may show each task its own device alone
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device(kind if name == "auto" else name)
