"""Batches on the device, copied beside the step that computes."""

from collections.abc import Generator
from contextlib import closing

import torch

from regscale.types import Batch


def on_device(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """Each batch on `device`. On CUDA the next one is copied by a stream of its own, from pinned
    memory, while the caller's kernels run; elsewhere it moves when asked for."""
    with closing(batches):
        if device.type != "cuda":
            for batch in batches:
                yield batch.to(device)
            return
        stream = torch.cuda.Stream(device)
        ready = _copied(next(batches), device, stream)
        while True:
            torch.cuda.current_stream(device).wait_stream(stream)
            current = ready
            current.hold(torch.cuda.current_stream(device))
            yield current  # the caller queues its step, then asks for more
            ready = _copied(next(batches), device, stream)


def _copied(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Batch:
    with torch.cuda.stream(stream):
        return batch.to(device)
