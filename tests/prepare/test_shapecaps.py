"""`prepare shapecaps`: an export holds the very pictures and captions that the kind makes."""

import json
from pathlib import Path

import pytest
import torch

from regscale.data.shapecaps import Config, build
from regscale.errors import RegscaleError
from regscale.prepare.__main__ import main
from tests.data.test_shards import source as shards_source
from tests.prepare.pictures import hashes, members


def export(out: Path, *options: str) -> dict[str, str]:
    main(["shapecaps", "--export", str(out), "--workers", "1", "--num-samples", "90", *options])
    return hashes(out)


def test_an_export_read_as_shards_keeps_pixels_and_captions(tmp_path: Path) -> None:
    made = export(tmp_path, "--shard-mb", "0.1", "--seed", "5", "--size", "64")
    assert len(made) > 1
    places = range(1_000, 1_090)  # the place in the run decides which of the captions is taken
    live = build(Config(num_samples=90, size=64, seed=5)).read(range(90), places)
    data = shards_source(tmp_path, "images", "captions", image_size=64, crop="none", seed=5)
    assert data.num_samples == 90
    stored = data.read(range(90), places)
    assert stored.keys == live.keys
    assert stored.captions == live.captions
    assert torch.equal(stored.images, live.images)


def test_all_captions_and_their_sources_are_in_the_json(tmp_path: Path) -> None:
    export(tmp_path, "--split", "held_out", "--kinds", "position")
    about = json.loads(members(tmp_path)["shapecaps-held-out-00000007.json"])
    one = build(Config(num_samples=90, split="held_out", kinds=("position",))).scene(7)
    assert about["captions"] == list(one.captions)
    assert about["caption_sources"] == ["short", "full", "relation"]
    assert about["kind"] == "position"


def test_weights_of_captions_work_on_an_export(tmp_path: Path) -> None:
    export(tmp_path)
    options = {"caption_weights": {"short": 1.0, "full": 0.0, "relation": 0.0}}
    batch = shards_source(tmp_path, "captions", **options).read(range(90), range(90))
    source = build(Config(num_samples=90))
    assert batch.captions == tuple(source.scene(index).captions[0] for index in range(90))


def test_the_same_command_makes_the_same_bytes_and_another_is_refused(tmp_path: Path) -> None:
    first = export(tmp_path / "a")
    assert export(tmp_path / "b") == first
    assert export(tmp_path / "a") == first
    with pytest.raises(RegscaleError, match=r"begun with another plan; found .*seed: 0, now 1"):
        export(tmp_path / "a", "--seed", "1")


def test_what_cannot_be_made_is_refused_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="shapecaps: --size: is 32 or doubled; found 40"):
        export(tmp_path, "--size", "40")
    with pytest.raises(RegscaleError, match="shapecaps: --kinds: have held-out captions"):
        export(tmp_path, "--split", "held_out")
