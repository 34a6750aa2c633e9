"""What a loader keeps: an index of 8 bytes a sample and 8 a field, and nothing that grows."""

import builtins
import gc
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regscale.data import batches, shards
from regscale.data._merged import Index, Shard, write
from tests.data.packing import folder_of

NUM_SHARDS = 5000


def held() -> int:
    """Bytes of Python's objects, which tracemalloc sees, and of tensors, which it does not."""
    gc.collect()
    storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
    of_tensors = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return tracemalloc.get_traced_memory()[0] + sum(of_tensors.values())


def test_epoch_after_epoch_takes_no_more_memory(tmp_path: Path) -> None:
    """Keeping what is read would take 500 bytes a sample: 300 KB in three epochs of 200."""
    folder_of(tmp_path, [50] * 4)
    config = shards.Config(urls=(str(tmp_path),), fields=("moments", "vit", "labels"))
    made = batches(shards.build(config), None, seed=0, start=0, batch_size=20)
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(5):
            for _ in range(10):
                next(made)
            sizes.append(held())
    finally:
        tracemalloc.stop()
        made.close()
    assert sizes[-1] - sizes[1] < 40_000


def test_five_thousand_shards_are_one_index_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting opens the merged index, mapped into memory, and no shard and no index of a shard."""
    for number in range(NUM_SHARDS):
        (tmp_path / f"{number:05d}.tar").touch()
    rows, cells = (np.zeros((NUM_SHARDS, *shape), np.uint32) for shape in ((2,), (2, 2)))
    each = tuple(Shard(f"{i:05d}.tar", 1 << 20, "0" * 16, "0" * 32, 1) for i in range(NUM_SHARDS))
    fields, counts = ("moments.npy", "cls"), (NUM_SHARDS, NUM_SHARDS)
    layouts = (((0, 1), (1, 1)),)
    write(
        tmp_path / "shards.index",
        Index("", each, fields, layouts, {}, (), counts, rows, cells),
    )
    opened: list[str] = []

    def counted(module: Any) -> None:
        real = module.open

        def opening(path: Any, *arguments: Any, **options: Any) -> Any:
            opened.append(str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(module, "open", opening)

    counted(builtins)
    counted(os)
    config = shards.Config(urls=(str(tmp_path),), fields=("moments", "labels"), mode="positional")
    data = shards.build(config)
    assert data.num_samples == NUM_SHARDS
    below = [path for path in opened if path.startswith(str(tmp_path))]
    assert set(below) == {str(tmp_path / "shards.index")}
    assert len(below) <= 3  # the header, and a map of each of its two arrays
    index = data.selection.places[0].index
    assert all(place.index is index for place in data.selection.places)
    assert isinstance(index.rows.base, np.memmap)
    assert isinstance(index.cells.base, np.memmap)
    assert index.rows.nbytes + index.cells.nbytes == NUM_SHARDS * (8 + 8 * len(fields))
