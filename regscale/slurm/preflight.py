"""Seconds before training: every rank says what it has, and a bad node is named.

srun ... python -m regscale.slurm preflight runs/NAME
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from regscale import log as log_module
from regscale.cluster import Cluster, connect, join
from regscale.errors import RegscaleError
from regscale.slurm.place import Place
from regscale.training.agreement import digest, versions

log = logging.getLogger(__name__)

MIN_FREE_GIB = 1.0  # of the disk that holds the run
MAX_SKEW_SECONDS = 5.0  # the lease compares clocks
FREE_OF_USUAL = 0.9  # GPU memory, of what the other ranks have free
TRIES = 5


class BadNodes(RegscaleError):
    """Something is wrong with these nodes alone; another node may do."""

    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank has."""

    host: str
    rank: int
    device: str
    driver: str
    free_memory_gib: float | None  # of the GPU
    versions: dict[str, str]  # and the config's hash
    free_disk_gib: float
    clock: float  # seconds, all read at one moment
    write_seconds: float
    written: str  # why the write test failed, or nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--device", default="auto")


def run(options: argparse.Namespace) -> int:
    log_module.set_up(rank=Place.current().rank)
    check(options.folder, device=options.device)
    return 0


def check(folder: Path, *, device: str = "auto", config: str = "") -> None:
    """Raise on all ranks where a node is not fit for the run. Collective."""
    start = time.perf_counter()
    cluster = connect(join(device))
    place = Place.current()
    reports = cluster.gather(_report(cluster, place, folder, config))
    problems = list(_problems(reports, folder))
    speed = None if problems or cluster.world_size == 1 else _all_reduce(cluster)
    floor = float(os.environ.get("REGSCALE_MIN_ALLREDUCE_GBPS", "0"))
    if speed is not None and speed < floor:
        problems += _slow(cluster, place, speed, floor)
    for line in _lines(reports):
        log.info("preflight: %s", line)
    if problems:
        raise _refusal(problems, {each.host for each in reports})
    log.info(
        "preflight passed in %.1f s: %s ranks on %s nodes%s",
        time.perf_counter() - start,
        cluster.world_size,
        len({each.host for each in reports}),
        "" if speed is None else f", all-reduce {speed:.2f} GB/s",
    )


def _report(cluster: Cluster, place: Place, folder: Path, config: str) -> Report:
    seconds, written = _write_test(cluster, place, folder)
    cluster.barrier()
    clock = time.time()
    name, driver, free = platform.processor() or platform.machine(), "", None
    if cluster.device.type == "cuda":
        name = torch.cuda.get_device_name(cluster.device)
        driver = _driver()
        free = torch.cuda.mem_get_info(cluster.device)[0] / 2**30
    libraries = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    return Report(
        host=place.host,
        rank=cluster.rank,
        device=name,
        driver=driver,
        free_memory_gib=free,
        versions=versions() | libraries | {"config": digest(config)},
        free_disk_gib=_free_gib(folder),
        clock=clock,
        write_seconds=seconds,
        written=written,
    )


def _write_test(cluster: Cluster, place: Place, folder: Path) -> tuple[float, str]:
    """Write, sync and read back a file; then see what rank 0 wrote: the disk must be shared."""
    start = time.perf_counter()
    text = f"{place.job} {place.restart} {cluster.rank}"
    own = folder / f".preflight-{cluster.rank}"
    error = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with own.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if own.read_text() != text:
            error = "what was written is not read back"
    except OSError as caught:
        error = f"cannot be written: {caught.strerror or caught}"
    seconds = time.perf_counter() - start
    cluster.barrier()
    if not error and not (folder / ".preflight-0").exists():
        error = "is not the folder that rank 0 sees"
    cluster.barrier()
    if not error:
        own.unlink(missing_ok=True)
    return seconds, error


def _driver() -> str:
    """Of NVIDIA's kernel module."""
    try:
        found = re.search(r"\d+\.\d[\d.]*", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return ""
    return found[0] if found else ""


def _free_gib(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free / 2**30
    except OSError:
        return 0.0


def _problems(reports: list[Report], folder: Path) -> Iterator[tuple[str, str]]:
    """(node, what is wrong with it), over all ranks."""
    usual_clock = statistics.median(each.clock for each in reports)
    usual_free = statistics.median(each.free_memory_gib or 0.0 for each in reports)
    skew = float(os.environ.get("REGSCALE_MAX_SKEW_SECONDS", MAX_SKEW_SECONDS))
    disk = float(os.environ.get("REGSCALE_MIN_FREE_GIB", MIN_FREE_GIB))
    for each in reports:
        if each.written:
            yield each.host, f"{folder} {each.written}"
        elif each.free_disk_gib < disk:
            yield each.host, f"{folder} has {each.free_disk_gib:.1f} GiB free, less than {disk:g}"
        if abs(each.clock - usual_clock) > skew:
            yield each.host, f"the clock is off by {each.clock - usual_clock:+.1f} s"
        if each.free_memory_gib is not None and each.free_memory_gib < FREE_OF_USUAL * usual_free:
            yield (
                each.host,
                f"the GPU of rank {each.rank} has {each.free_memory_gib:.1f} GiB free, the others "
                f"{usual_free:.1f}: another process holds it",
            )
    for name in ("device", "driver"):
        yield from _odd(reports, name, [getattr(each, name) for each in reports])
    for name in reports[0].versions:
        yield from _odd(reports, name, [each.versions[name] for each in reports])


def _odd(reports: list[Report], name: str, values: list[str]) -> Iterator[tuple[str, str]]:
    """Nodes on which a value is not that of most ranks."""
    usual = Counter(values).most_common(1)[0][0]
    for each, value in zip(reports, values, strict=True):
        if value != usual:
            yield each.host, f"{name} is '{value}', on most ranks '{usual}'"


def _refusal(problems: list[tuple[str, str]], hosts: set[str]) -> RegscaleError:
    """What most nodes have is no fault of theirs: a full disk is everyone's, and a first node that
    sees another folder makes all the others odd."""
    told: dict[str, list[str]] = {}
    for node, text in problems:
        told.setdefault(node, [])
        if text not in told[node]:
            told[node].append(text)
    where, what = f"preflight: {', '.join(told)}", "cannot take part in the run"
    found = "; ".join(f"{node}: {', '.join(texts)}" for node, texts in told.items())
    if 2 * len(told) > len(hosts):
        fix = "Most nodes of the job are named: look at what they share, the disk or the network."
        return RegscaleError(where, what, found=found, fix=fix)
    fix = (
        f"Leave it out with sbatch --exclude={','.join(told)}, or let the launcher do so: "
        "REGSCALE_EXCLUDE_BAD_NODES=1."
    )
    error = BadNodes(where, what, found=found, fix=fix)
    error.nodes = tuple(told)
    return error


def _lines(reports: list[Report]) -> Iterator[str]:
    """One for each node."""
    usual = statistics.median(each.clock for each in reports)
    for host in dict.fromkeys(each.host for each in reports):
        ranks = [each for each in reports if each.host == host]
        first = ranks[0]
        free = [each.free_memory_gib for each in ranks if each.free_memory_gib is not None]
        parts = [f"{host}: {len(ranks)} x {first.device}"]
        parts += [f"driver {first.driver}"] if first.driver else []
        parts += [f"{min(free):.1f} GiB free on each"] if free else []
        parts += [f"disk {first.free_disk_gib:,.0f} GiB free"]
        parts += [f"written in {1000 * max(each.write_seconds for each in ranks):.0f} ms"]
        parts += [f"clock {first.clock - usual:+.2f} s"]
        parts += [f"torch {first.versions['torch']}", f"code {first.versions['code']}"]
        yield ", ".join([*parts, f"config {first.versions['config']}"])


def _all_reduce(cluster: Cluster, group: dist.ProcessGroup | None = None) -> float:
    """GB/s of the ring's busiest link: 2 (n - 1) / n of the bytes go over it. The best of a few."""
    cuda = cluster.device.type == "cuda"
    data = torch.zeros(2**26 if cuda else 2**18, device=cluster.device)  # 256 MiB, 1 MiB
    size = dist.get_world_size(group)
    best = float("inf")
    for _ in range(TRIES):
        start = time.perf_counter()
        dist.all_reduce(data, group=group)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    speed = 2 * (size - 1) / size * data.numel() * 4 / best / 1e9
    return float(cluster.mean(torch.tensor([speed]))[0]) if group is None else speed


def _slow(cluster: Cluster, place: Place, speed: float, floor: float) -> list[tuple[str, str]]:
    """The nodes that are slow with both of their neighbours; all where it cannot be told."""
    hosts = list(dict.fromkeys(cluster.gather(place.host)))
    everyone = cluster.gather((place.host, cluster.local_rank))
    leaders = [everyone.index(next(e for e in everyone if e[0] == host)) for host in hosts]
    slow: Counter[str] = Counter()
    for index in range(len(hosts) if len(hosts) > 2 else 0):
        ranks = sorted({leaders[index], leaders[(index + 1) % len(hosts)]})
        group = dist.new_group(ranks)
        pair = _all_reduce(cluster, group) if cluster.rank in ranks else 0.0
        if max(cluster.gather(pair)) < floor:
            slow.update([hosts[index], hosts[(index + 1) % len(hosts)]])
    named = [host for host, count in slow.items() if count == 2] or hosts
    text = f"an all-reduce runs at {speed:.2f} GB/s, the floor is {floor:g}"
    return [(host, text) for host in named]
