"""What commands over a folder of shards share: the list, the processes, the report."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from regscale.data import Finding
from regscale.errors import RegscaleError
from regscale.prepare._process import this_process
from regscale.progress import Advance, progress

T = TypeVar("T")


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder by name."""
    shards = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not shards:
        raise RegscaleError(
            folder,
            "holds no shards",
            found="no *.tar" if folder.is_dir() else "no such folder",
            fix="Give the folder of the tars.",
        )
    return shards


def mine(shards: Sequence[Path]) -> list[Path]:
    """This process's part, of those that torchrun or a Slurm step started."""
    rank, world_size, _ = this_process()
    return list(shards[rank::world_size])


def parallel(
    work: Callable[[Path], T], shards: Sequence[Path], *, workers: int | None, what: str
) -> list[T]:
    """`work` of each shard, in other processes unless one is enough; the results in the order of
    the shards."""
    if workers is not None and workers < 1:
        raise RegscaleError(
            "prepare: --workers",
            "is a positive number of processes",
            found=workers,
            fix="Leave it out for all cores.",
        )
    number = min(workers or _num_cores(), len(shards))
    with progress(len(shards), what=what, unit="shards") as advance:
        if number < 2:
            return list(_one_by_one(work, shards, advance))
        return _in_processes(work, shards, advance, number)


def _one_by_one(work: Callable[[Path], T], shards: Sequence[Path], advance: Advance) -> Iterator[T]:
    for shard in shards:
        yield work(shard)
        advance(1)


def _in_processes(
    work: Callable[[Path], T], shards: Sequence[Path], advance: Advance, number: int
) -> list[T]:
    results: dict[int, T] = {}
    with ProcessPoolExecutor(number, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(work, shard): place for place, shard in enumerate(shards)}
        try:
            for future in as_completed(waiting):
                results[waiting[future]] = future.result()
                advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[place] for place in range(len(shards))]


def _num_cores() -> int:
    """That this process may run on: a task of Slurm has its own."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def report(findings: Iterable[Finding]) -> None:
    """One line for each damaged place."""
    for shard, byte, sample, what in findings:
        about = f"sample {sample}: " if sample else ""
        sys.stdout.write(f"{shard}: byte {byte:,}: {about}{what}\n")
