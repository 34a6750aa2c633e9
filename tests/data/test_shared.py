"""What workers hand over: memory that goes round, and copies of it that stay."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regscale.data import NoiseShapes, _shared, batches
from regscale.data._loader import UNREAD
from regscale.types import Batch
from tests.data.packing import folder_of
from tests.data.test_shards import source

SHAPES = NoiseShapes(latents=(4, 4, 4), tokens=((1, 6),))
COUNT, WORKERS = 10, 2


def listed(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(note)
    return found


def tensors(root: Path, num_workers: int) -> list[list[Tensor]]:
    """Of each of the first batches, looked at when all were read."""
    made = batches(source(root), SHAPES, seed=0, start=0, batch_size=4, num_workers=num_workers)
    read = [next(made) for _ in range(COUNT)]
    made.close()
    return [listed(batch) for batch in read]


def test_a_batch_stays_what_it_is_while_workers_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the parent is so slow to copy that every worker waits for it."""
    folder_of(tmp_path, [40])
    plain = tensors(tmp_path, 0)
    copy = _shared.Taken._copy

    def slow(self: _shared.Taken, tensor: Tensor) -> Tensor:
        time.sleep(0.02)
        return copy(self, tensor)

    monkeypatch.setattr(_shared.Taken, "_copy", slow)
    for ours, theirs in zip(tensors(tmp_path, WORKERS), plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert not any(tensor.is_shared() for tensor in ours)


def test_workers_write_to_the_same_memory_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, [40])
    seen: list[int] = []
    copy = _shared.Taken._copy

    def noted(self: _shared.Taken, tensor: Tensor) -> Tensor:
        seen.append(tensor.untyped_storage().data_ptr())
        return copy(self, tensor)

    monkeypatch.setattr(_shared.Taken, "_copy", noted)
    count = len(tensors(tmp_path, WORKERS)[0])
    assert len(seen) == COUNT * count
    assert len(set(seen)) <= WORKERS * (UNREAD + 1) * count


def test_a_program_ends_though_it_left_a_loader_open(tmp_path: Path) -> None:
    """Workers take no SIGTERM, with which Python would end them."""
    folder_of(tmp_path, [8])
    program = (
        "from regscale.data import batches, shards\n"
        f"data = shards.build(shards.Config(urls=({str(tmp_path)!r},), fields=('labels',)))\n"
        "made = batches(data, None, seed=0, start=0, batch_size=4, num_workers=1)\n"
        "print(next(made).labels.tolist())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=False, text=True
    )
    assert (ended.returncode, len(ended.stdout.split(",")), ended.stderr) == (0, 4, "")


def test_memory_grows_with_the_largest_batch() -> None:
    ring = _shared.Ring(2)
    for size in (3, 5, 4, 2):
        ring.turn()
        ring.empty((size,), torch.float32).fill_(size)
        assert ring.empty((0, size), torch.int64).shape == (0, size)
    assert [[s.nbytes() for s in slot] for slot in ring._slots] == [[20, 1], [16, 1]]
