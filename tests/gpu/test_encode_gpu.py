"""`prepare encode` in large batches on a CUDA device: the bar that no CPU can show."""

from pathlib import Path

import pytest
import torch

from benchmarks import _data_costs, _data_made
from benchmarks._data_made import Size

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZE = Size(samples=128, pictures=128, image_size=256)


def test_large_batches_encode_twice_as_fast_as_single_pictures(tmp_path: Path) -> None:
    folder = _data_made.shards(tmp_path / "png", SIZE, dtype="float16", image="png")
    found = _data_costs.encoding(tmp_path, folder, SIZE, batch=64, repeats=3, device="cuda")
    assert found["calls_of_two_models"] == found["calls_wanted"]
    assert found["rate_over_batch_1"] >= 2
