"""A small checkpoint of every kind of tensor, and children that may be killed."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regscale.checkpoint import Piece, Reader, Record, abandon, begin, commit, write_part
from regscale.checkpoint.format import no_phase


def make_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(7, 31, generator=generator)
    return {
        "model/weight": normal,
        "model/scalar": torch.tensor(1.5 + seed),
        "model/empty": torch.zeros(0, 4),
        "model/half": normal[:3].bfloat16(),
        "ema/0.9999/weight": normal * 0.5,
        "optimizer/count": torch.arange(13) + 2**40 + seed,
        "optimizer/mask": normal[0] > 0,
        "optimizer/bytes": torch.arange(5, dtype=torch.uint8),
        "model/transposed": normal.t(),
    }


def cut(tensors: dict[str, Tensor], writer: int, writers: int) -> list[Piece]:
    """The ranges of one writer, as even as they come; some are empty."""
    pieces = []
    for name, tensor in tensors.items():
        share = -(-tensor.numel() // writers)
        start, stop = (min(i * share, tensor.numel()) for i in (writer, writer + 1))
        flat = tensor.reshape(-1)[start:stop]
        pieces.append(Piece(name, tuple(tensor.shape), start, stop, flat))
    return pieces


def make_record(step: int) -> Record:
    return Record(
        step=step,
        samples=256 * step,
        config={"model": {"kind": "sit", "depth": 2}, "rate": 1e-4},
        progress={"scale": 65536.0, "versions": {"numpy": "2"}},
    )


def save_parts(
    root: Path,
    step: int,
    *,
    writers: int = 2,
    block_bytes: int = 256,
    phase: Callable[[str], None] = no_phase,
) -> Path:
    """What several ranks do, one after the other, with blocks small enough to be many."""
    tensors = make_tensors(step)
    folder = begin(root, step)
    phase("begin")
    try:
        parts = [
            write_part(folder, i, cut(tensors, i, writers), block_bytes=block_bytes, phase=phase)
            for i in range(writers)
        ]
    except BaseException:
        abandon(folder)
        raise
    return commit(folder, parts, make_record(step), phase=phase)


def load_all(folder: Path) -> dict[str, Tensor]:
    reader = Reader(folder)
    return {name: reader.tensor(name) for name in reader.names()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a
    )


def start_child(function: Callable[[], object]) -> int:
    """Fork; the child's status is 0 unless the function raises or the child is killed."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_child(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class KillAt:
    """A `phase` that kills its own process at the n-th one."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, _: str) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


class Toolbox:
    tensors = staticmethod(make_tensors)
    cut = staticmethod(cut)
    record = staticmethod(make_record)
    save = staticmethod(save_parts)
    load = staticmethod(load_all)
    same = staticmethod(same)
    start = staticmethod(start_child)
    end = staticmethod(end_child)
    KillAt = KillAt


@pytest.fixture
def tools() -> type[Toolbox]:
    return Toolbox
