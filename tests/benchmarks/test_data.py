"""The data benchmark compares the same samples, and its equalities hold at tiny size."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _data_made, _data_ways, data
from benchmarks._data_made import Size
from benchmarks._data_ways import Reading

SIZE = Size(samples=16, samples_a_shard=8, pictures=16, image_size=8, latent_size=4)
READING = Reading(batch_size=4, num_batches=4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_all_ways_read_the_same_samples(tmp_path: Path, dtype: str) -> None:
    root = _data_made.published(tmp_path / "published", SIZE)
    folder = _data_made.shards(tmp_path / "png", SIZE, dtype=dtype, image="png")
    published = _data_ways.published(root, READING, num_samples=16, images=True)
    own = list(
        zip(range(4), _data_ways.regscale(folder, READING, images=True, size=8)(), strict=False)
    )
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for images, moments, labels in published():
        for image, row, label in zip(images, moments, labels.tolist(), strict=True):
            seen[label] = (image, row)
    assert len(seen) == 16
    for _, batch in own:
        assert batch.noise is None
        moments = torch.cat(batch.moments, dim=1)
        for image, row, label in zip(batch.images, moments, batch.labels.tolist(), strict=True):
            assert torch.equal(image, seen[label][0])
            assert torch.equal(row, seen[label][1])
    batch = next(_data_ways.sequential(folder, READING)())
    for row, label in zip(*batch, strict=True):
        assert torch.equal(row.float(), seen[int(label)][1])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The command at tiny size, whatever its rates."""
    path = tmp_path_factory.mktemp("report") / "data.json"
    words = "--samples 64 --pictures 16 --image-size 32 --batch-size 16 --batches 12 --repeats 1"
    with suppress(SystemExit):
        data.main([*words.split(), "--workers", "0", "--out", str(path)])
    return json.loads(path.read_text())


def test_the_command_writes_its_report(report: dict[str, Any]) -> None:
    assert {"command", "date", "versions", "settings", "missed"} <= set(report)
    ways = report["latents"]["0 workers"]
    assert set(ways["regscale fp16"]) == {
        "samples_per_second",
        "over published",
        "over webdataset fp16",
    }
    assert "regscale fp32, with noise" in ways
    assert {f"regscale {kind}" for kind in ("png", "jpg", "webp")} < set(
        report["latents_and_pictures"]["0 workers"]
    )
    assert len(report["seconds_to_first_batch"]["0 workers"]) == 4
    assert len(report["private_memory"]["0 workers"]["mib"]) == 5
    assert data.lines(report)


def test_encoding_in_batches_gives_the_numbers_of_one_by_one(report: dict[str, Any]) -> None:
    encode = report["encode"]
    assert encode["calls_of_two_models"] == encode["calls_wanted"] == 2
    assert encode["largest_difference"] <= 1e-5


def test_a_missed_bar_is_named(report: dict[str, Any]) -> None:
    row = {"over published": 2.5, "over webdataset fp32": 2.0, "over webdataset fp16": 0.5}
    figures = {
        "latents": {"0 workers": {f"regscale {kind}": row for kind in ("fp32", "fp16")}},
        "latents_and_pictures": {"0 workers": {"regscale png": {"over published": 1.1}}},
        "encode": {**report["encode"], "largest_difference": 1e-3},
        "seconds_to_first_batch": {"0 workers": {"start": 0.1, "99% of epoch 1": 1.5}},
        "private_memory": {"0 workers": {"growth_mib": 9.0}},
    }
    assert data.missed(figures) == [
        "latents, fp32, 0 workers, over the published way: 2.5, the bar is 3",
        "latents, fp16, 0 workers, over the published way: 2.5, the bar is 3",
        "latents, fp16, 0 workers, over webdataset: 0.5, the bar is 1",
        "encode, - largest difference: -0.001, the bar is -1e-05",
        "first batch at 99% of epoch 1, 0 workers, - seconds: -1.5, the bar is -1",
        "memory, 0 workers, - MiB of growth: -9, the bar is -8",
    ]
