"""`prepare captions`: img2dataset's output through filters, with all captions of a sample."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regscale.errors import RegscaleError
from regscale.prepare.__main__ import main
from regscale.prepare.captions import groups, texts
from tests.data.packing import pack
from tests.data.test_shards import source as shards_source
from tests.prepare.pictures import encoded, hashes, members

GOOD = {"aesthetic": 6.0, "pwatermark": 0.1, "similarity": 0.3}


def jpg(width: int = 40, height: int = 40, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    return encoded(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(
    number: int, image: bytes | None = None, **about: Any
) -> tuple[str, Mapping[str, bytes]]:
    """As img2dataset writes it."""
    key = f"{number // 10:05d}{number % 10:04d}"
    told = {**GOOD, "key": key, "url": "http://a", "caption": f"caption {number}", **about}
    fields = {
        "jpg": image or jpg(seed=number),
        "txt": f"caption {number}\n".encode(),
        "json": json.dumps(told).encode(),
    }
    return key, fields


def downloaded(root: Path, *more: tuple[str, Mapping[str, bytes]]) -> Path:
    """Three tars of ten samples, and what is odd in a fourth."""
    for tar in range(3):
        pack(root / f"{tar:05d}.tar", [sample(10 * tar + i) for i in range(10)])
    if more:
        pack(root / "00003.tar", more)
    return root


def captions(root: Path, out: Path, *options: str) -> dict[str, str]:
    main(["captions", str(root), str(out), "--workers", "1", "--shard-mb", "0.06", *options])
    return hashes(out)


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "shards.json").read_text())  # type: ignore[no-any-return]


def test_folders_of_files_give_the_samples_of_tars(tmp_path: Path) -> None:
    root = downloaded(tmp_path / "tars")
    for tar in range(3):
        folder = tmp_path / "files" / f"{tar:05d}"
        folder.mkdir(parents=True)
        for number in range(10):
            key, fields = sample(10 * tar + number)
            for field, payload in fields.items():
                (folder / f"{key}.{field}").write_bytes(payload)
        (tmp_path / "files" / f"{tar:05d}_stats.json").write_text("{}")
    captions(root, tmp_path / "a")
    captions(tmp_path / "files", tmp_path / "b")
    captions(tmp_path / "files" / "00001", tmp_path / "c")
    whole = members(tmp_path / "a")
    assert members(tmp_path / "b") == whole
    assert members(tmp_path / "c") == {n: v for n, v in whole.items() if n.startswith("00001")}
    with pytest.raises(RegscaleError, match="holds no output of img2dataset"):
        captions(tmp_path / "nowhere", tmp_path / "d")


def test_pictures_keep_their_bytes_and_captions_are_what_the_loader_reads(tmp_path: Path) -> None:
    root = downloaded(tmp_path / "in")
    made = captions(root, tmp_path / "out")
    assert 1 < len(made) < 3 + 1
    found = members(tmp_path / "out")
    assert found["000010002.jpg"] == jpg(seed=12)
    about = json.loads(found["000010002.json"])
    assert about["captions"] == ["caption 12"]
    assert about["caption_sources"] == ["txt"]
    assert about["url"] == "http://a"
    data = shards_source(tmp_path / "out", "images", "captions", image_size=40)
    batch = data.read([12], [0])
    assert batch.keys == ("000010002",)
    assert batch.captions == ("caption 12",)


def test_several_captions_keep_their_sources(tmp_path: Path) -> None:
    root = downloaded(tmp_path / "in")
    more = {"blip": "a cat", "human": ["one", " ", "two"], "models": {"b": "B", "a": "A"}}
    pack(root / "00003.tar", [sample(30, **more)])
    captions(root, tmp_path / "out", "--captions", "txt", "human", "models", "blip", "none")
    about = json.loads(members(tmp_path / "out")["000030000.json"])
    assert list(zip(about["caption_sources"], about["captions"], strict=True)) == [
        ("txt", "caption 30"), ("human", "one"), ("human", "two"), ("models/a", "A"),
        ("models/b", "B"), ("blip", "a cat"),
    ]  # fmt: skip
    data = shards_source(tmp_path / "out", "captions")
    drawn = {data.read([30], [place]).captions for place in range(60)}
    assert {caption for each in drawn for caption in each or ()} == set(about["captions"])


def test_the_text_may_be_in_the_json_only() -> None:
    assert texts("", {"caption": "x"}, ["txt"]) == [("txt", "x")]
    assert texts("", {"caption": None}, ["txt", "alt"]) == []


def test_each_filter_counts_what_it_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [
        sample(30, jpg(40, 20)),
        sample(31, jpg(100, 40)),
        sample(32, aesthetic=4.0),
        sample(33, aesthetic=None),
        sample(34, pwatermark=0.9),
        sample(35, similarity=0.1),
        sample(36, aesthetic=5.0, pwatermark=0.5, similarity=0.2),  # on every bound
        sample(37, blip="", caption=None),
        sample(38, aesthetic=float("nan")),
    ]
    root = downloaded(tmp_path / "in", *odd)
    filters = (
        "--min-side", "32", "--max-aspect", "2", "--min-aesthetic", "5", "--max-watermark", "0.5",
        "--min-clip", "0.2",
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        captions(root, tmp_path / "out", *filters)
    about = told(tmp_path / "out")
    assert about["removed"] == {
        "a side below 32 pixels": 1,
        "an aspect ratio above 2": 1,
        "'aesthetic' is not at least 5": 1,
        "no number 'aesthetic'": 2,
        "'pwatermark' is not at most 0.5": 1,
        "'similarity' is not at least 0.2": 1,
    }
    assert about["samples"] == 32
    assert "000030006.jpg" in members(tmp_path / "out")
    assert "1 removed: an aspect ratio above 2" in caplog.text


def test_names_of_scores_and_captions_can_be_chosen(tmp_path: Path) -> None:
    root = downloaded(tmp_path / "in", sample(30, AESTHETIC_SCORE=7, alt="text"))
    options = ("--min-aesthetic", "5", "--aesthetic-field", "AESTHETIC_SCORE", "--captions", "alt")
    captions(root, tmp_path / "out", *options)
    assert told(tmp_path / "out")["samples"] == 1
    assert told(tmp_path / "out")["removed"] == {"no number 'AESTHETIC_SCORE'": 30}
    captions(root, tmp_path / "alt", "--captions", "alt")
    assert told(tmp_path / "alt")["removed"] == {"no caption from alt": 30}


def test_damage_fails_by_name_or_is_skipped_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sample(30)[1]
    odd = [
        ("cut", {**whole, "jpg": whole["jpg"][:500]}),
        ("list", {**whole, "json": b"[]"}),
        ("latin", {**whole, "txt": "é".encode("latin-1")}),
        ("blind", {"txt": b"x"}),
        sample(1),
    ]
    root = downloaded(tmp_path / "in", *odd)
    size = (root / "00003.tar").stat().st_size
    pack(root / "00004.tar", [sample(40), sample(41)])
    os.truncate(root / "00004.tar", 3 * 1024 + len(sample(40)[1]["jpg"]) + 100)
    with pytest.raises(RegscaleError, match=r"00003\.tar/cut: cannot be packed; found .*'jpg' is"):
        captions(root, tmp_path / "out")
    assert (root / "00003.tar").stat().st_size == size
    captions(root, tmp_path / "out", "--policy", "skip")
    text = capsys.readouterr().out
    assert "sample 00003.tar/list: field 'json' is json that is no object" in text
    assert "sample 00003.tar/latin: field 'txt' is no text in UTF-8" in text
    assert "sample 00003.tar/blind: has no picture; it has txt" in text
    assert "00004.tar: byte" in text
    assert "is cut" in text
    main(["verify", str(tmp_path / "out"), "--workers", "1"])


def test_two_ranks_make_what_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = downloaded(tmp_path / "in")
    expected = captions(root, tmp_path / "one", "--shard-mb", "0.02")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        made = captions(root, tmp_path / "two", "--shard-mb", "0.02")
    assert made == expected


def test_shards_without_samples_are_left_out_and_not_tried_again(tmp_path: Path) -> None:
    root = tmp_path / "in"
    pack(root / "00000.tar", [sample(i, similarity=0.1) for i in range(10)])
    pack(root / "00001.tar", [sample(i) for i in range(10, 20)])
    options = ("--shard-mb", "0.01", "--min-clip", "0.2")
    made = captions(root, tmp_path / "out", *options)
    assert list(made) == ["00001.tar"]
    before = (tmp_path / "out/prepare/00000.json").stat().st_mtime_ns
    assert captions(root, tmp_path / "out", *options) == made
    assert (tmp_path / "out/prepare/00000.json").stat().st_mtime_ns == before
    with pytest.raises(RegscaleError, match="has no samples; found 20 removed: 'similarity'"):
        captions(root, tmp_path / "none", "--min-clip", "0.9")


def test_tars_are_joined_to_shards_by_size() -> None:
    sizes = [(f"{i}.tar", 100_000_000) for i in range(10)]
    made = groups(sizes, 250)
    assert [len(tasks) for tasks in made.values()] == [2, 3, 2, 3]
    assert list(made) == [f"0000{i}.tar" for i in range(4)]
    assert [tar for tasks in made.values() for (tar,) in tasks] == [name for name, _ in sizes]
    assert len(groups(sizes, 10)) == 10


def test_other_filters_are_another_plan(tmp_path: Path) -> None:
    root = downloaded(tmp_path / "in")
    captions(root, tmp_path / "out")
    with pytest.raises(RegscaleError, match="another plan; found min_side: 0, now 32"):
        captions(root, tmp_path / "out", "--min-side", "32")
    with pytest.raises(RegscaleError, match="holds no output of img2dataset; found no such"):
        captions(tmp_path / "empty", tmp_path / "out2")
