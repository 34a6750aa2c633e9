"""Checkpoints of several ranks: written in the background, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from regscale.checkpoint import Piece, Reader, Record, newest
from regscale.cluster import Cluster
from regscale.training.saver import Saver
from tests.processes import Pool


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


def record(step: int) -> Record:
    return Record(step=step, samples=8 * step, config={"model": {"kind": "sit"}})


def tensors(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    made = {f"model/{i}": torch.randn(5 + i, 7, generator=g) for i in range(4)}
    return made | {"optimizer/count": torch.arange(11) + step, "model/empty": torch.zeros(0, 3)}


def pieces(cluster: Cluster, step: int) -> list[Piece]:
    """Every tensor cut as evenly as it comes."""
    cut = []
    for name, tensor in tensors(step).items():
        share = -(-tensor.numel() // cluster.world_size)
        start, stop = (min(i * share, tensor.numel()) for i in (cluster.rank, cluster.rank + 1))
        values = tensor.reshape(-1)[start:stop].clone()
        cut.append(Piece(name, tuple(tensor.shape), start, stop, values))
    return cut


def assert_intact(reader: Reader | None, step: int) -> None:
    assert reader is not None
    assert reader.step == step
    for name, tensor in tensors(step).items():
        assert torch.equal(reader.tensor(name), tensor), name


def _saves_in_the_background(cluster: Cluster, folder: str) -> None:
    """With as many files as ranks, and with fewer; training writes into its tensors at once."""
    for max_writers in (64, 2, 1):
        root = Path(folder) / str(max_writers)
        with Saver(root, cluster, keep_last=2, keep_every=0, max_writers=max_writers) as saver:
            assert saver.wait() is None
            for step in (1, 2, 3):
                given = pieces(cluster, step)
                saver.save(given, record(step))
                for piece in given:
                    piece.values.zero_()
                assert saver.stall_seconds > 0
            assert saver.wait(strict=True) == 3
        files = sorted(path.name for path in (root / "step-00000003").glob("*.safetensors"))
        num_files = min(max_writers, cluster.world_size)
        assert files == [f"part-{i:05d}.safetensors" for i in range(num_files)]
        assert_intact(newest(root, cluster), 3)
        assert sorted(path.name for path in root.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_save_in_the_background(pool: Pool, tmp_path: Path, size: int) -> None:
    pool.run(size, _saves_in_the_background, str(tmp_path))


def test_one_process_saves_in_the_background(tmp_path: Path) -> None:
    alone = Cluster(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    _saves_in_the_background(alone, str(tmp_path))
