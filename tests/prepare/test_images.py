"""`prepare images`: the same shards from every form of ImageNet, whoever makes them."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regscale.data._tar import split_name
from regscale.errors import RegscaleError
from regscale.prepare import _plan
from regscale.prepare.__main__ import main
from regscale.prepare._pictures import Cut, Shaping
from tests.data.packing import overwrite
from tests.data.test_shards import source as shards_source
from tests.prepare import pictures

SMALL = ("--size", "16", "--shard-mb", "0.012", "--workers", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures.as_folder(tmp_path / "train", pictures.imagenet())


def images(source: Path, out: Path, *options: str) -> dict[str, str]:
    """The hashes of the shards that the command makes."""
    main(["images", str(source), str(out), *SMALL, *options])
    return pictures.hashes(out)


def published_crop(picture: Image.Image, image_size: int) -> np.ndarray:
    """center_crop_arr of guided-diffusion (github.com/openai/guided-diffusion, MIT)."""
    while min(*picture.size) >= 2 * image_size:
        picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.BOX)
    scale = image_size / min(*picture.size)
    picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.BICUBIC)
    arr = np.array(picture)
    crop_y = (arr.shape[0] - image_size) // 2
    crop_x = (arr.shape[1] - image_size) // 2
    return arr[crop_y : crop_y + image_size, crop_x : crop_x + image_size]


def test_every_form_of_imagenet_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    files = pictures.imagenet()
    expected = images(folder, tmp_path / "out")
    assert len(expected) >= 3
    tars = pictures.as_folder(tmp_path / "tars", pictures.class_tars(files))
    sources = {
        "tar": pictures.as_tar_of_tars(tmp_path / "ILSVRC2012_img_train.tar", files),
        "tars": tars,
        "zip": pictures.as_zip(tmp_path / "a.zip", files, below="ILSVRC/train/"),
        "shards": pictures.as_shards(tmp_path / "wds", files),
    }
    for name, source in sources.items():
        assert images(source, tmp_path / f"out-{name}") == expected, name


def test_parquet_gives_the_same_bytes_in_the_same_order(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = pictures.as_parquet(tmp_path / "hf", pictures.imagenet())
    made = images(rows, tmp_path / "hf-out", "--order", "shuffled")
    assert made == images(folder, tmp_path / "out")
    assert (tmp_path / "hf-out/classes.txt").read_text().split() == list(pictures.SYNSETS)
    plain = images(rows, tmp_path / "rows")
    assert plain != made
    assert pictures.members(tmp_path / "rows") == pictures.members(tmp_path / "out")


def test_samples_are_cut_as_published_and_labelled_by_sorted_synsets(
    folder: Path, tmp_path: Path
) -> None:
    images(folder, tmp_path / "out")
    found = pictures.members(tmp_path / "out")
    assert len(found) == 2 * 18
    for name, payload in pictures.imagenet().items():
        synset, _, file = name.partition("/")
        key = file.removesuffix(".JPEG")
        assert found[f"{key}.cls"] == str(pictures.SYNSETS.index(synset)).encode()
        made = np.array(Image.open(io.BytesIO(found[f"{key}.png"])))
        expected = published_crop(Image.open(io.BytesIO(payload)).convert("RGB"), 16)
        assert np.array_equal(made, expected), name


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(16, 300), width=st.integers(16, 300), size=st.sampled_from([16, 24]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_crop_is_the_published_one(height: int, width: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    payload = pictures.encoded(pixels, "PNG")
    crops: tuple[Cut, ...] = ("centre", "resize")
    for crop in crops:
        shaping = Shaping(size=size, crop=crop, format="png", quality=95)
        made = Image.open(io.BytesIO(shaping.shaped(payload)[1]))
        expected = published_crop(Image.fromarray(pixels), size)
        assert min(made.size) == size
        assert np.array_equal(published_crop(made, size), expected)


def test_the_shards_are_a_source_that_verifies(folder: Path, tmp_path: Path) -> None:
    images(folder, tmp_path / "out")
    data = shards_source(tmp_path / "out", "images", "labels", image_size=16)
    batch = data.read(range(18), range(18))
    assert batch.labels is not None
    assert sorted(batch.labels.tolist()) == [0] * 6 + [1] * 6 + [2] * 6
    assert batch.labels.tolist() != sorted(batch.labels.tolist())  # shuffled
    main(["verify", str(tmp_path / "out"), "--workers", "1"])
    about = json.loads((tmp_path / "out/shards.json").read_text())
    assert about["samples"] == sum(about["shards"].values()) == 18
    assert about["class_counts"] == {"0": 6, "1": 6, "2": 6}
    assert (tmp_path / "out/classes.txt").read_text().split() == list(pictures.SYNSETS)


def test_a_kill_and_a_restart_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Killed after some shards: those stay untouched, the others come out the same."""
    expected = images(folder, tmp_path / "whole", "--shard-mb", "0.004")
    out = tmp_path / "out"
    slow = (
        "import sys, time\nfrom regscale.prepare import _pictures, __main__\n"
        "plain = _pictures.Shaping.shaped\n"
        "def shaped(self, payload):\n    time.sleep(0.1)\n    return plain(self, payload)\n"
        "_pictures.Shaping.shaped = shaped\n__main__.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", slow, "images", str(folder), str(out), *SMALL]
    process = subprocess.Popen([*command, "--shard-mb", "0.004"], start_new_session=True)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if len(list(out.glob("*.tar.index"))) > 1 and list((out / "prepare").glob("*.part")):
            break  # in the middle of the third
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in out.glob("*.tar.index")}
    assert 0 < len(there) < len(expected)
    assert images(folder, out, "--shard-mb", "0.004") == expected
    assert all(path.stat().st_mtime_ns == before for path, before in there.items())
    assert not list((out / "prepare").glob("*.part"))
    assert shards_source(out, "images", image_size=16).num_samples == 18


@pytest.mark.parametrize(
    "names",
    [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")],
)
def test_two_ranks_make_what_one_makes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    expected = images(folder, tmp_path / "one")
    for rank in ("1", "0"):
        assert not (tmp_path / "two/shards.index").exists()
        monkeypatch.setenv(names[0], rank)
        monkeypatch.setenv(names[1], "2")
        made = images(folder, tmp_path / "two")
    assert made == expected
    assert (tmp_path / "two/shards.index").exists()


def test_processes_make_what_one_makes(folder: Path, tmp_path: Path) -> None:
    expected = images(folder, tmp_path / "one")
    assert images(folder, tmp_path / "two", "--workers", "2") == expected


def test_a_validation_split_is_held_out_by_hash(folder: Path, tmp_path: Path) -> None:
    images(folder, tmp_path / "a", "--validation", "5")
    held = {name for name in pictures.members(tmp_path / "a/validation") if name.endswith("png")}
    assert len(held) == 5
    assert len(pictures.members(tmp_path / "a")) == 36  # no key in both
    held_source = shards_source(tmp_path / "a/validation", "images", "labels", image_size=16)
    assert held_source.num_samples == 5
    images(folder, tmp_path / "b", "--validation", "6", "--format", "webp")
    more = {name for name in pictures.members(tmp_path / "b/validation") if "webp" in name}
    assert {name[:-3] for name in held} < {name[:-4] for name in more}


def test_odd_pictures_come_out_upright_in_rgb(tmp_path: Path) -> None:
    images(pictures.as_folder(tmp_path / "in", pictures.odd_pictures()), tmp_path / "out")
    found = pictures.members(tmp_path / "out")
    made = {
        name: Image.open(io.BytesIO(payload))
        for name, payload in found.items()
        if name.endswith(".png")
    }
    assert sorted(made) == sorted(
        f"{n.partition('.')[0].replace('/', '_')}.png" for n in pictures.odd_pictures()
    )
    assert {(p.mode, p.size) for p in made.values()} == {("RGB", (16, 16))}
    deep = np.array(made["n2_deep.png"])
    assert 60 < deep.mean() < 190  # 16 bits are scaled, not clipped
    images(tmp_path / "in", tmp_path / "large", "--crop", "resize")
    turned = pictures.members(tmp_path / "large")["n1_exif.png"]
    assert Image.open(io.BytesIO(turned)).size == (16, 23)


@pytest.mark.parametrize(("format", "magic"), [("jpg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_formats(folder: Path, tmp_path: Path, format: str, magic: bytes) -> None:
    images(folder, tmp_path / "out", "--format", format, "--quality", "90")
    found = pictures.members(tmp_path / "out")
    assert {name.partition(".")[2] for name in found} == {"cls", format}
    assert found[f"n01440764_0.{format}"].startswith(magic)


def test_no_crop_keeps_the_bytes_and_names_them_by_content(tmp_path: Path) -> None:
    files = pictures.odd_pictures()
    images(pictures.as_folder(tmp_path / "in", files), tmp_path / "out", "--crop", "none")
    found = pictures.members(tmp_path / "out")
    assert found["n1_named.png"] == files["n1/named.JPEG"]
    assert found["n2_huge.webp"] == files["n2/huge.webp"]
    assert found["n1_cmyk.jpg"] == files["n1/cmyk.JPEG"]


def damaged(root: Path) -> Path:
    files = pictures.imagenet()
    whole = files["n01440764/n01440764_1.JPEG"]
    files["n01440764/n01440764_1.JPEG"] = whole[: len(whole) // 2]
    files["n01443537/n01443537_0.JPEG"] = b"<html>not found</html>"
    return pictures.as_folder(root, files)


def test_damage_fails_by_name_or_is_skipped_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = damaged(tmp_path / "in")
    with pytest.raises(RegscaleError, match=r"sample n\d+_\d: cannot be packed; found .*picture"):
        images(source, tmp_path / "out")
    images(source, tmp_path / "out", "--policy", "skip")  # goes on with the same folder
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.split(": ")[1] for line in lines] == [
        "sample n01440764_1",
        "sample n01443537_0",
    ]
    about = json.loads((tmp_path / "out/shards.json").read_text())
    assert about["samples"] == 16
    assert about["removed"] == {"damaged": 2}
    assert sorted(sample for sample, _ in about["damaged"]) == ["n01440764_1", "n01443537_0"]


def test_a_cut_tar_is_damage(tmp_path: Path) -> None:
    path = pictures.as_tar_of_tars(tmp_path / "in.tar", pictures.imagenet())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RegscaleError, match=r"in\.tar.*is cut inside member"):
        images(path, tmp_path / "out")


def test_damage_of_a_tar_may_be_skipped(tmp_path: Path) -> None:
    path = pictures.as_tar_of_tars(tmp_path / "in.tar", pictures.imagenet())
    os.truncate(path, path.stat().st_size * 4 // 5)  # inside the last class, which is listed first
    images(path, tmp_path / "out", "--policy", "skip")
    about = json.loads((tmp_path / "out/shards.json").read_text())
    assert 0 < about["samples"] < 18
    assert len(about["damaged"]) >= 1


def test_damage_inside_a_zip_is_told_by_sample(tmp_path: Path) -> None:
    files = pictures.imagenet()
    path = pictures.as_zip(tmp_path / "a.zip", files)
    payload = files["n01440764/n01440764_3.JPEG"]
    overwrite(path, path.read_bytes().index(payload) + 300, b"\0\1\2\3")
    with pytest.raises(RegscaleError, match=r"n01440764_3: .*inside the zip \(Bad CRC-32"):
        images(path, tmp_path / "out")


def test_shards_with_keys_alike_are_told_apart_by_their_names(tmp_path: Path) -> None:
    root = pictures.as_shards(tmp_path / "in", pictures.imagenet())
    (root / "1.tar").write_bytes((root / "0.tar").read_bytes())
    images(root, tmp_path / "out")
    found = pictures.members(tmp_path / "out")
    assert len(found) == 2 * 18
    assert found["0_n01440764_0.png"] == found["1_n01440764_0.png"]


def test_keys_are_safe_and_never_alike() -> None:
    names = [
        "n1/n1_2.JPEG", "a/b_c.jpg", "a_b/c.jpg", "a/x.jpg", "a/x.png", "a/X.jpg", "a/.. é.jpg",
        "a/1.5.jpg", "a/" + "y" * 300 + ".jpg", "a/" + "y" * 299 + "z.jpg", "a/b/../c.jpg",
    ]  # fmt: skip
    made = _plan.keys(names)
    assert made[0] == "n1_2"
    assert len({key.lower() for key in made}) == len(names)
    assert all(len(key) <= 80 and split_name(f"{key}.jpg") == (key, "jpg") for key in made)
    assert dict(zip(names, made, strict=True)) == dict(
        zip(names[::-1], _plan.keys(names[::-1]), strict=True)
    )
    with pytest.raises(RegscaleError, match="a/x: is there more than once"):
        _plan.keys(["a/x", "a/x"])


def pictures_of(root: Path) -> Path:
    return pictures.as_folder(root, pictures.imagenet())


def _flat_tar(root: Path) -> Path:
    root.mkdir()
    path = root / "ILSVRC2012_img_val.tar"
    path.write_bytes(pictures._tar({"ILSVRC2012_val_00000001.JPEG": b""}))
    return path


def _text(root: Path) -> Path:
    root.mkdir()
    (root / "a.txt").write_text("no archive")
    return root / "a.txt"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: root / "none", (), "none: is not there; found no such file"),
        (_text, (), "neither tar, zip nor parquet"),
        (_flat_tar, (), r"no pictures with classes; found ILSVRC2012_val_00000001\.JPEG"),
        (lambda root: root.mkdir() or root, (), "too few pictures in classes; found 0"),
        (lambda root: root, ("--quality", "0"), "--quality: is from 1 to 100; found 0"),
        (lambda root: root, ("--size", "0"), "are positive; found 0"),
        (pictures_of, ("--workers", "0"), "--workers: is a positive number of processes; found 0"),
    ],
)
def test_refusals(
    tmp_path: Path, make: Callable[[Path], Path], options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RegscaleError, match=message):
        images(make(tmp_path / "in"), tmp_path / "out", *options)


@pytest.mark.parametrize("command", ["images", "convert", "captions"])
@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_a_shard_of_no_size_is_refused(tmp_path: Path, command: str, size: str) -> None:
    words = [command, str(tmp_path), str(tmp_path / "out"), f"--shard-mb={size}"]
    with pytest.raises(
        RegscaleError,
        match=rf"{command}: --shard-mb: is a positive .* found {float(size)}\. Try 1000",
    ):
        main(words)


def test_another_plan_or_foreign_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    images(folder, tmp_path / "out")
    with pytest.raises(RegscaleError, match="another plan; found format: png, now jpg"):
        images(folder, tmp_path / "out", "--format", "jpg")
    (folder / "n01440764" / "n01440764_0.JPEG").unlink()
    with pytest.raises(RegscaleError, match="another plan; found listing: "):
        images(folder, tmp_path / "out")
    pictures.as_shards(tmp_path / "old", pictures.imagenet())
    with pytest.raises(RegscaleError, match=r"did not make; found 2, the first 0\.tar"):
        images(folder, tmp_path / "old")


def test_a_zip_may_hold_more_than_the_classes(folder: Path, tmp_path: Path) -> None:
    files = {
        f"I/{split}/{n}": p for split in ("train", "val") for n, p in pictures.imagenet().items()
    }
    path = pictures.as_zip(tmp_path / "a.zip", files)
    made = images(path, tmp_path / "out", "--within", "I/train")
    assert made == images(folder, tmp_path / "plain")


def test_parquet_splits_must_be_chosen(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    root = pictures.as_parquet(tmp_path / "hf", pictures.imagenet())
    first = next(root.iterdir())
    (root / "test-0.parquet").write_bytes(first.read_bytes())
    with pytest.raises(RegscaleError, match=r"several splits; found test, train\. Choose one"):
        images(root, tmp_path / "out")
    with pytest.raises(RegscaleError, match="no parquet file that begins with 'dev'"):
        images(root, tmp_path / "out", "--split", "dev")
    images(root, tmp_path / "out", "--split", "train")


def test_parquet_without_its_reader_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setattr("regscale.prepare._sources.find_spec", lambda name: None)
    with pytest.raises(RegscaleError, match=r"pyarrow; found no such package\. Install it"):
        images(tmp_path, tmp_path / "out")
