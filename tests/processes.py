"""Several processes for a test: a few workers that stay, so that torch is imported once.

    pool.run(2, function, *arguments)     # [function(cluster, *arguments) of rank 0, of rank 1]

Functions are found by their module and name. A worker that fails raises here with its traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

LIMIT_SECONDS = 120.0


class Pool:
    """Workers that form a group of any size for each task."""

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Connection]] = []

    def run(
        self, size: int, function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> list[Any]:
        """The results of `size` ranks, in order."""
        while len(self._workers) < size:
            self._workers.append(_start())
        with tempfile.TemporaryDirectory() as folder:
            for rank, (_, line) in enumerate(self._workers[:size]):
                line.send((rank, size, f"{folder}/store", partial(function, **options), arguments))
            return self._collect(size)

    def _collect(self, size: int) -> list[Any]:
        results: dict[int, Any] = {}
        lines = {line: rank for rank, (_, line) in enumerate(self._workers[:size])}
        while len(results) < size:
            ready = wait(
                [line for line, rank in lines.items() if rank not in results], LIMIT_SECONDS
            )
            for line in ready:
                try:
                    failed, value = pickle.loads(line.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    failed, value = True, "the process died"
                if failed:
                    self.close()
                    raise AssertionError(f"rank {lines[line]}: {value}")  # type: ignore[index]
                results[lines[line]] = value  # type: ignore[index]
            if not ready:
                self.close()
                raise AssertionError(f"ranks {set(range(size)) - set(results)} hang")
        return [results[rank] for rank in range(size)]

    def close(self) -> None:
        """End all workers."""
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers = []


def _start() -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there,), daemon=True)
    process.start()
    there.close()
    return process, here


def _work(line: Connection) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            task = line.recv()
        except EOFError:
            return
        # As bytes: a tensor in shared memory holds a file open for as long as it is kept.
        try:
            line.send_bytes(pickle.dumps((False, _do(*task))))
        except BaseException:
            line.send_bytes(pickle.dumps((True, traceback.format_exc())))


def _do(rank: int, size: int, path: str, function: Callable[..., Any], arguments: Any) -> Any:
    import torch.distributed as dist

    from regscale.cluster import connect, join

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    if size > 1:  # one process knows of no others, as without a launcher
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(path, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=LIMIT_SECONDS),
        )
    try:
        return function(connect(join("cpu")), *arguments)
    finally:
        leave()


def leave() -> None:
    """DeepSpeed keeps groups of its own, which it has to forget, and numbers modules and weights
    since the process began, which ranks compare."""
    import sys

    import torch.distributed as dist

    comm = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        comm.destroy_process_group()
        comm.cdb = None
    if dist.is_initialized():
        dist.destroy_process_group()
    if comm is not None:
        zero = sys.modules["deepspeed.runtime.zero.parameter_offload"]
        zero.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        sys.modules["deepspeed.runtime.zero.partition_parameters"].Init.param_id = 0
