"""Buckets: whole batches of one size, every sample as often as any other, none left out."""

import logging
import pickle
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regscale.config import load_values
from regscale.data import Bucketed, NoiseShapes, batches, buckets, shards, size_of
from regscale.data._buckets import Buckets, turn
from regscale.errors import RegscaleError
from regscale.types import Batch
from tests.data.packing import index, pack, picture_of

COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=7).map(tuple)
SIZES = {"16x8": 3, "8x16": 11, "8x8": 6}
SHAPES = NoiseShapes(
    latents=(1, 4, 4),
    tokens=((1, 2),),
    buckets={(16, 8): (1, 8, 4), (8, 16): (1, 4, 8), (8, 8): (1, 4, 4)},
)


class Numbers:
    """A source whose samples are their numbers."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.num_samples, self.image_size, self.fingerprint = count, size, f"{count} of {size}"

    def read(self, indices: list[int], positions: list[int]) -> Batch:
        return Batch(keys=tuple(map(str, indices)), positions=torch.tensor(positions))


def numbers(counts: tuple[int, ...], batch_size: int) -> Buckets:
    sources = {f"b{i}": Numbers(n, (8 * (i + 1), 8)) for i, n in enumerate(counts)}
    return Buckets(sources, batch_size)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 400))
def test_each_bucket_has_its_share_of_the_first_batches(counts: tuple[int, ...], b: int) -> None:
    """To within (1 + m n / N) / 2 of them: what the module's docstring promises."""
    had = Counter(turn(counts, number)[0] for number in range(b))
    for owner, n in enumerate(counts):
        share = Fraction(n, sum(counts))
        assert abs(had[owner] - b * share) <= (1 + len(counts) * share) / 2


@settings(max_examples=40, deadline=None)
@given(COUNTS)
def test_after_as_many_batches_as_samples_each_bucket_has_had_its_own(
    counts: tuple[int, ...],
) -> None:
    total = sum(counts)
    for start in (0, total, 1000 * total):
        found = Counter(turn(counts, start + number)[0] for number in range(total))
        assert found == Counter(dict(enumerate(counts)))


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.just(0) | st.integers(1, 10**12))
def test_the_batches_of_a_bucket_are_numbered_without_a_gap(
    counts: tuple[int, ...], start: int
) -> None:
    seen: dict[int, int] = {}
    for number in range(start, start + 100):
        owner, before = turn(counts, number)
        assert before == seen.get(owner, before if start else 0)
        seen[owner] = before + 1


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 9), st.integers(0, 3), st.integers(1, 150))
def test_the_samples_of_a_bucket_are_used_equally_often(
    counts: tuple[int, ...], batch_size: int, seed: int, num_batches: int
) -> None:
    """Floor or ceiling of the mean, wherever the run ends, also with fewer samples than a batch."""
    data = numbers(counts, batch_size)
    used: Counter[int] = Counter()
    for number in range(num_batches):
        places = range(number * batch_size, (number + 1) * batch_size)
        used.update(data.order(places, seed))
    for owner, n in enumerate(counts):
        uses = [used[data.starts[owner] + sample] for sample in range(n)]
        assert max(uses) - min(uses) <= 1


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 10**6))
def test_any_part_of_a_batch_has_the_size_and_samples_of_the_whole(
    counts: tuple[int, ...], parts: int, number: int
) -> None:
    data, size = numbers(counts, 12), 12 // parts
    places = range(12 * number, 12 * number + 12)
    whole = data.order(places, 5)
    assert [s for i in range(parts) for s in data.order(places[i * size :][:size], 5)] == whole
    assert len({data.read([s], [0]).image_size for s in whole}) == 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, count in SIZES.items():
        samples = [
            (f"{name}-{i}", {"png": picture_of(i, size_of(name) or (0, 0)), "cls": b"1"})
            for i in range(count)
        ]
        pack(tmp_path / name / "0.tar", samples)
        index(tmp_path / name)
    return tmp_path


def made(root: Path, batch_size: int = 4, **options: object) -> Buckets:
    sources = {
        name: {
            "kind": "shards", "urls": [str(root / name)], "fields": ["images", "labels"],
            "image_size": name, "crop": "none", **options,
        }
        for name in SIZES
    }  # fmt: skip
    values = {"batch_size": batch_size, "sources": sources}
    return buckets.build(load_values(buckets.Config, values, "test"))


def run(data: Buckets, start: int, count: int, **options: int) -> list[Batch]:
    stream = batches(data, SHAPES, seed=3, start=start, batch_size=4, **options)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def test_a_batch_has_pictures_and_noise_of_one_size(root: Path) -> None:
    data = made(root)
    assert isinstance(data, Bucketed)
    assert (data.num_samples, data.image_size) == (20, (8, 8))
    seen = Counter()
    for batch in run(data, 0, 20):
        assert batch.images is not None
        assert batch.noise is not None
        assert batch.image_size is not None
        assert batch.images.shape[-2:] == batch.image_size
        assert batch.noise.latents.shape[1:] == SHAPES.buckets[batch.image_size]
        assert batch.noise.posterior.shape == batch.noise.latents.shape
        assert {key.partition("-")[0] for key in batch.keys} == {"{}x{}".format(*batch.image_size)}
        seen.update(batch.keys)
    assert len(seen) == 20
    assert set(seen.values()) == {4}  # 20 batches of 4: each sample comes as often as any other


def test_a_run_is_the_same_on_any_number_of_ranks_and_workers_and_from_anywhere(
    root: Path,
) -> None:
    whole = run(made(root), 0, 9)
    for world_size, workers in ((2, 0), (4, 0), (2, 1)):
        ranks = [
            run(made(root), 8, 7, rank=r, world_size=world_size, num_workers=workers)
            for r in range(world_size)
        ]
        for number, parts in enumerate(zip(*ranks, strict=True), start=2):
            want = whole[number]
            assert want.noise is not None
            assert sum((part.keys for part in parts), ()) == want.keys
            assert {part.image_size for part in parts} == {want.image_size}
            latents = torch.cat([part.noise.latents for part in parts])
            assert torch.equal(latents, want.noise.latents)


def test_the_parts_of_a_batch_keep_its_size(root: Path) -> None:
    (batch,) = run(made(root), 0, 1)
    assert {part.image_size for part in batch.split(2)} == {batch.image_size}
    assert batch.to(torch.device("cpu")).image_size == batch.image_size


def test_a_bucket_smaller_than_a_batch_goes_through_its_epochs_and_it_is_told_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        data = made(root)
        found = [b for b in run(data, 0, 20) if b.image_size == (16, 8)]
    told = [m for m in caplog.messages if m.startswith("bucket")]
    assert told == ["bucket 16x8 has 3 samples for a batch of 4: some come in it more than once"]
    keys = [key for batch in found for key in batch.keys]
    assert [set(keys[i : i + 3]) for i in range(0, 12, 3)] == [{f"16x8-{i}" for i in range(3)}] * 4


def test_it_travels_to_processes_and_knows_its_data(root: Path) -> None:
    data = made(root)
    again = pickle.loads(pickle.dumps(data))
    assert again.order(range(40, 44), 1) == data.order(range(40, 44), 1)
    assert again.fingerprint == data.fingerprint
    assert made(root, batch_size=5).fingerprint != data.fingerprint


def test_what_is_no_batch_of_the_training_is_refused(root: Path) -> None:
    data = made(root)
    with pytest.raises(RegscaleError, match=r"in the batches of a training, each of one size"):
        data.order(range(3, 5), 0)
    with pytest.raises(RegscaleError, match=r"samples of 3 buckets.*or one bucket's source"):
        data.read(range(20), range(20))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0, "sources": {"a": {"kind": "digits"}}}, "is that of the training"),
        ({"batch_size": 4, "sources": {}}, "are one for each size"),
    ],
)
def test_a_config_without_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(RegscaleError, match=message):
        load_values(buckets.Config, values, "test")


@pytest.mark.parametrize("written", ["16x8", 16, "16"])
def test_shards_are_of_a_square_or_of_height_and_width(written: int | str) -> None:
    values = {"urls": ["x"], "fields": ["images"], "image_size": written}
    config = load_values(shards.Config, values, "test")
    assert shards.build(config).image_size == ((16, 8) if written == "16x8" else (16, 16))


@pytest.mark.parametrize("written", ["16x", "0x8", 0, -4, "8x8x8", "large"])
def test_another_size_is_refused(written: int | str) -> None:
    values = {"urls": ["x"], "fields": ["images"], "image_size": written}
    with pytest.raises(
        RegscaleError, match="image_size: is a positive number of pixels, or HEIGHTx"
    ):
        load_values(shards.Config, values, "test")


def test_a_random_crop_of_rectangles_is_refused() -> None:
    values = {"urls": ["x"], "fields": ["images"], "image_size": "16x8", "crop": "random"}
    with pytest.raises(RegscaleError, match="crop: can be random of squares alone"):
        load_values(shards.Config, values, "test")
