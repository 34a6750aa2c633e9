"""Several sources by weight: exact shares, and every sample once in each epoch of its source."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regscale.config import load_values, to_values
from regscale.data import NoiseShapes, batches, digits, mix, shards
from regscale.data._mix import BLOCK, Mix, Schedule, shares
from regscale.errors import RegscaleError
from tests.data.packing import folder_of

SHAPES = NoiseShapes(latents=(1, 1, 1), tokens=())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_shares_are_whole_and_close_to_the_weights(weights: list[float]) -> None:
    given = shares(weights, BLOCK)
    assert sum(given) == BLOCK
    assert min(given) >= 1
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    assert all(abs(a - b) <= len(weights) for a, b in zip(given, exact, strict=True))


@settings(max_examples=20, deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 3))
def test_each_source_is_read_place_by_place(weights: list[int], seed: int) -> None:
    schedule = Schedule(weights)
    run = [schedule.locate(counter, seed) for counter in range(2 * BLOCK)]
    for owner, share in enumerate(schedule.shares):
        assert [place for who, place in run if who == owner] == list(range(2 * share))
    assert [Schedule(weights).locate(c, seed) for c in (5000, 17)] == [run[5000], run[17]]


def sources(root: Path) -> Mix:
    config = {
        "weights": {"few": 1.0, "many": 3.0},
        "sources": {
            name: {
                "kind": "shards", "urls": [str(folder_of(root / name, counts))],
                "fields": ["labels", "moments", "vit", "captions", "images"], "image_size": 8,
            }
            for name, counts in (("many", [9, 11]), ("few", [5]))
        },
    }  # fmt: skip
    return mix.build(load_values(mix.Config, config, "test"))


def test_a_mix_is_read_like_any_source(tmp_path: Path) -> None:
    data = sources(tmp_path)
    assert data.num_samples == 25
    batch = data.read([0, 24, 3, 5], [6, 7, 8, 9])  # few comes first, by name
    assert batch.keys == ("s00000", "s00019", "s00003", "s00000")
    assert batch.positions.tolist() == [6, 7, 8, 9]
    assert batch.captions == ("caption 0", "caption 19", "caption 3", "caption 0")
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 9, 3, 0]
    assert batch.moments is not None
    assert batch.moments.mean.shape == (4, 4, 4, 4)
    assert batch.features is not None
    assert batch.features["vit"].tokens.shape == (4, 1, 6)


def test_every_sample_comes_once_in_each_epoch_of_its_source(tmp_path: Path) -> None:
    data = sources(tmp_path)
    run = data.order(range(1600), 0)
    few, many = [i for i in run if i < 5], [i for i in run if i >= 5]
    assert abs(len(few) - 400) < 60
    for part, size in ((few, 5), (many, 20)):
        for start in range(0, len(part) - size, size):
            assert len(set(part[start : start + size])) == size
    assert data.order(range(700, 800), 0) == run[700:800]


def test_a_run_of_a_mix_is_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    runs = []
    for ranks in (1, 4):
        loaders = [
            batches(
                sources(tmp_path), SHAPES, seed=2, start=40, batch_size=8,
                rank=rank, world_size=ranks,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        runs.append([key for _ in range(6) for loader in loaders for key in next(loader).keys])
    assert runs[0] == runs[1]
    assert Counter(runs[0]).most_common(1)[0][1] < 10


def test_its_config_survives_and_its_errors_name_the_key(tmp_path: Path) -> None:
    values = {"weights": {"a": 1.0}, "sources": {"a": {"kind": "digits", "split": "judge"}}}
    config = load_values(mix.Config, values, "test")
    assert config.sources["a"] == digits.Config(split="judge")
    assert to_values(config) == values
    with pytest.raises(RegscaleError, match="weights: names every source once"):
        load_values(mix.Config, {**values, "weights": {"b": 1.0}}, "test")
    with pytest.raises(RegscaleError, match=r"weights\.a: is positive; found 0"):
        load_values(mix.Config, {**values, "weights": {"a": 0.0}}, "test")


def test_sources_agree_in_size_and_fields(tmp_path: Path) -> None:
    folder_of(tmp_path, [4])

    def part(*fields: str, size: int = 8) -> shards.Shards:
        config = shards.Config(urls=(str(tmp_path),), fields=fields, image_size=size)
        return shards.build(config)

    with pytest.raises(RegscaleError, match="have images of one size"):
        Mix({"a": part("labels"), "b": part("labels", size=9)}, {"a": 1, "b": 1})
    data = Mix({"a": part("labels"), "b": part("labels", "captions")}, {"a": 1, "b": 1})
    with pytest.raises(RegscaleError, match="captions is not in all of them"):
        data.read([0, 5], [0, 1])
