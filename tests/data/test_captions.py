"""The choice among a sample's captions: by weight of their sources, and by the place in the run."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from regscale import chance
from regscale.config import Invalid, load_values, to_values
from regscale.data import NoiseShapes, _captions, batches, shards
from regscale.errors import RegscaleError
from regscale.training.state import check_same_run
from tests.data.packing import index, pack
from tests.data.test_shards import source

ABOUT = {
    "captions": ["a0", "s0", "a1", "t0"],
    "caption_sources": ["alt", "synthetic", "alt", "txt"],
}
NUM = 4000


def packed(root: Path, *samples: Mapping[str, Any]) -> Path:
    """One shard whose samples are these json objects."""
    pairs = [(f"k{i}", {"json": json.dumps(about).encode()}) for i, about in enumerate(samples)]
    pack(root / "0.tar", pairs)
    index(root)
    return root


def counted(
    root: Path, weights: dict[str, float], about: Mapping[str, Any] = ABOUT
) -> Counter[str]:
    data = source(packed(root, about), "captions", caption_weights=weights)
    return Counter(data.read([0] * NUM, range(NUM)).captions)


def assert_shares(found: Counter[str], shares: dict[str, float]) -> None:
    """Within four deviations of the binomial; a share of 0 is exact."""
    assert found.keys() == {name for name, share in shares.items() if share}
    for name, share in shares.items():
        assert abs(found[name] - NUM * share) <= 4 * (NUM * share * (1 - share)) ** 0.5, name


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({}, {"a0": 0.25, "s0": 0.25, "a1": 0.25, "t0": 0.25}),
        ({"alt": 0.3, "synthetic": 0.7, "txt": 0}, {"a0": 0.15, "s0": 0.7, "a1": 0.15}),
        ({"alt": 3, "synthetic": 6, "txt": 1}, {"a0": 0.15, "s0": 0.6, "a1": 0.15, "t0": 0.1}),
        ({"alt": 0.2, "txt": 0.2, "human": 5}, {"a0": 0.25, "a1": 0.25, "t0": 0.5}),
        ({"txt": 1e-9}, {"t0": 1.0}),
    ],
    ids=["none: all alike", "a zero", "only ratios matter", "absent sources", "one"],
)
def test_captions_come_by_the_weights_of_the_sources_that_a_sample_has(
    tmp_path: Path, weights: dict[str, float], shares: dict[str, float]
) -> None:
    assert_shares(counted(tmp_path, weights), shares)


def test_the_choice_is_a_function_of_seed_and_counter_alone(tmp_path: Path) -> None:
    weights = {"synthetic": 0.5, "alt": 0.25, "txt": 0.25}
    data = source(packed(tmp_path, ABOUT), "captions", caption_weights=weights, seed=3)

    def expected(counter: int) -> str:
        drawn = float(chance.uniform((3,), seed=3, purpose="data/caption", counter=counter)[0])
        ends = [("a0", 0.125), ("s0", 0.625), ("a1", 0.75), ("t0", 1.0)]
        return next(name for name, end in ends if drawn < end)

    assert data.read([0] * 200, range(200)).captions == tuple(map(expected, range(200)))
    assert data.read([0, 0], [70, 5]).captions == (expected(70), expected(5))


def test_any_number_of_workers_and_ranks_chooses_the_same_captions(tmp_path: Path) -> None:
    several = [{**ABOUT, "captions": [f"{i}{c}" for c in ABOUT["captions"]]} for i in range(6)]
    weights = {"synthetic": 0.5, "alt": 0.3, "txt": 0.2}
    data = source(packed(tmp_path, *several), "captions", caption_weights=weights)

    def run(num_workers: int, rank: int = 0, world_size: int = 1) -> list[tuple[str, ...]]:
        made = batches(
            data, NoiseShapes(latents=(1, 1, 1), tokens=()), seed=0, start=5, batch_size=8,
            num_workers=num_workers, rank=rank, world_size=world_size,
        )  # fmt: skip
        found = [next(made).captions or () for _ in range(12)]
        made.close()
        return found

    alone = run(0)
    assert len({caption for captions in alone for caption in captions}) > 12
    assert run(2) == alone
    halves = zip(run(0, 0, 2), run(2, 1, 2), strict=True)
    assert [first + second for first, second in halves] == alone


def test_a_text_alone_is_of_the_source_txt(tmp_path: Path) -> None:
    assert counted(tmp_path / "a", {"txt": 1}, {"caption": "c"}) == {"c": NUM}
    pack(tmp_path / "b" / "0.tar", [("k", {"txt": b"c"})])
    index(tmp_path / "b")
    assert source(tmp_path / "b", "captions", caption_weights={"txt": 1}).read([0], [0]).captions
    with pytest.raises(RegscaleError, match="it is from txt alone"):
        source(tmp_path / "b", "captions", caption_weights={"alt": 1}).read([0], [0])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"captions": ["a", "b"], "caption_sources": ["x", "y"]},
            r"0\.tar: sample k0 at byte 512 is damaged: field 'json' is without a caption that "
            r"data\.caption_weights takes, it is from x, y alone; found data\.policy=fail\.",
        ),
        ({"captions": ["a"]}, "captions without 'caption_sources', which data.caption_weights"),
        (
            {"captions": ["a", "b"], "caption_sources": ["alt"]},
            "json with 1 'caption_sources' for 2 'captions'",
        ),
        (
            {"captions": ["a"], "caption_sources": "alt"},
            "json whose 'caption_sources' are no list",
        ),
    ],
)
def test_a_sample_that_weights_cannot_choose_from_is_told(
    tmp_path: Path, about: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(RegscaleError, match=message):
        counted(tmp_path, {"alt": 1}, about)
    assert counted(tmp_path, {}, about)  # without weights their sources do not matter


def test_with_policy_skip_a_sample_without_weight_is_passed_over(tmp_path: Path) -> None:
    without = {"captions": ["a"], "caption_sources": ["alt"]}
    root, weights = packed(tmp_path, without, ABOUT), {"synthetic": 1.0}
    data = source(root, "captions", caption_weights=weights, policy="skip", skip_share=0.5)
    batch = data.read([0, 1], [0, 1])
    assert batch.keys == ("k1", "k1")
    assert batch.captions == ("s0", "s0")
    assert data.num_skipped == 1


def test_a_source_that_is_not_named_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _captions._tell.cache_clear()
    counted(tmp_path, {"alt": 1, "synthetc": 1})
    told = [record.message for record in caplog.records]
    assert told == [
        f"data.caption_weights does not name '{name}': its captions are never taken"
        for name in ("synthetic", "txt")
    ]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"alt": -1.0}, r"caption_weights\.alt: is a number, 0 or more; found -1"),
        ({"alt": float("nan")}, r"caption_weights\.alt: is a number, 0 or more; found nan"),
        ({"alt": 0.0, "txt": 0.0}, r"caption_weights: has a weight above 0; found \{'alt'"),
    ],
)
def test_weights_that_choose_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        shards.Config(urls=("x",), fields=("captions",), caption_weights=weights)


def test_weights_are_part_of_the_config_that_makes_a_run(tmp_path: Path) -> None:
    values = {"urls": ["x"], "fields": ["captions"], "caption_weights": {"alt": 1, "models/a": 2}}
    config = load_values(shards.Config, values, "test")
    assert config.caption_weights == {"alt": 1.0, "models/a": 2.0}
    saved = {"data": to_values(config)}
    check_same_run(saved, saved, "run")
    other = {"data": {**saved["data"], "caption_weights": {"alt": 1.0, "models/a": 3.0}}}
    with pytest.raises(RegscaleError, match=r"another data\.caption_weights\.models/a; found"):
        check_same_run(saved, other, "run")
