"""`prepare convert`: REG's folders to shards, paired by name."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from regscale.errors import RegscaleError
from regscale.prepare.__main__ import main
from tests.data.packing import npy, picture
from tests.data.test_shards import source as shards_source
from tests.prepare.pictures import hashes, members

COUNT = 12


def moments(number: int) -> np.ndarray:
    made = np.random.default_rng(number).standard_normal((8, 4, 4)).astype(np.float32)
    made[4:] = np.abs(made[4:])
    return made


def published(root: Path, *, images: str = "imagenet_256_vae", seed: int = 0) -> Path:
    """The layout as published; the order of dataset.json says nothing."""
    labels = {folder: [] for folder in (images, "vae-sd")}  # type: dict[str, list[list[object]]]
    for number in range(COUNT):
        below = f"{number // 5:05d}"
        names = {images: f"{below}/img{number:08d}.png"}
        names["vae-sd"] = f"{below}/img-mean-std-{number:08d}.npy"
        for folder, payload in ((images, picture(number)), ("vae-sd", npy(moments(number)))):
            path = root / folder / names[folder]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(payload)
            labels[folder].append([names[folder], number % 3])
    for folder, listed in labels.items():
        random.Random(seed).shuffle(listed)
        (root / folder / "dataset.json").write_text(json.dumps({"labels": listed}))
    return root


def convert(root: Path, out: Path, *options: str) -> dict[str, str]:
    main(["convert", str(root), str(out), "--workers", "1", "--shard-mb", "0.02", *options])
    return hashes(out)


def test_pictures_labels_and_posteriors_stay_together(tmp_path: Path) -> None:
    assert len(convert(published(tmp_path / "reg"), tmp_path / "out")) > 1
    found = members(tmp_path / "out")
    assert len(found) == 3 * COUNT
    for number in range(COUNT):
        assert found[f"img{number:08d}.png"] == picture(number)
        assert found[f"img{number:08d}.cls"] == str(number % 3).encode()
        assert found[f"img{number:08d}.moments.npy"] == npy(moments(number))
    data = shards_source(tmp_path / "out", "images", "labels", "moments")
    assert data.identities == {"moments": "published sd-vae-ft-mse"}
    batch = data.read(range(COUNT), range(COUNT))
    assert batch.moments is not None
    number = int(batch.keys[0][3:])
    assert torch.equal(batch.moments.mean[0], torch.from_numpy(moments(number)[:4]))


def test_the_order_of_labels_and_the_name_of_the_folder_change_nothing(tmp_path: Path) -> None:
    expected = convert(published(tmp_path / "reg"), tmp_path / "a")
    assert (
        convert(published(tmp_path / "repa", images="images", seed=7), tmp_path / "b") == expected
    )


def test_the_identity_outlives_another_indexing(tmp_path: Path) -> None:
    convert(published(tmp_path / "reg"), tmp_path / "out", "--autoencoder-identity", "mine")
    main(["index", str(tmp_path / "out"), "--workers", "1", "--force"])
    assert shards_source(tmp_path / "out", "moments").identities == {"moments": "mine"}


def test_half_precision_on_request(tmp_path: Path) -> None:
    convert(published(tmp_path / "reg"), tmp_path / "out", "--dtype", "float16")
    stored = members(tmp_path / "out")["img00000003.moments.npy"]
    assert stored == npy(moments(3).astype(np.float16))


def spoil(root: Path) -> Path:
    (root / "vae-sd/00000/img-mean-std-00000002.npy").unlink()
    (root / "imagenet_256_vae/00001/img00000007.png").unlink()
    (root / "imagenet_256_vae/00009").mkdir()
    (root / "imagenet_256_vae/00009/img7x.png").write_bytes(b"")
    (root / "imagenet_256_vae/00009/img00000001.png").write_bytes(b"")
    path = root / "vae-sd/dataset.json"
    listed = [each for each in json.loads(path.read_text())["labels"] if "0004" not in each[0]]
    path.write_text(json.dumps({"labels": listed}))
    path = root / "imagenet_256_vae/dataset.json"
    listed = [each for each in json.loads(path.read_text())["labels"] if "0004" not in each[0]]
    listed = [[name, label + ("0005" in name)] for name, label in listed]
    path.write_text(json.dumps({"labels": listed}))
    return root


EXPECTED = {
    "imagenet_256_vae/00000/img00000002.png: has no posterior in vae-sd",
    "vae-sd/00001/img-mean-std-00000007.npy: has no picture in imagenet_256_vae",
    "imagenet_256_vae/00000/img00000004.png: has no label in dataset.json",
    "imagenet_256_vae/00009/img7x.png: has no number in its name",
    "imagenet_256_vae/00009/img00000001.png: has the number of "
    "imagenet_256_vae/00000/img00000001.png",
    "imagenet_256_vae/dataset.json: says 00001/img00000005.png is 3, elsewhere it is 2",
}


def test_what_does_not_pair_is_told_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = spoil(published(tmp_path / "reg"))
    with pytest.raises(RegscaleError, match="do not pair; found 6, listed above, the first imag"):
        convert(root, tmp_path / "out")
    assert set(capsys.readouterr().out.splitlines()) == EXPECTED
    convert(root, tmp_path / "out", "--policy", "skip")
    about = json.loads((tmp_path / "out/shards.json").read_text())
    assert {f"{file}: {what}" for file, what in about["damaged"]} == EXPECTED
    assert about["samples"] == COUNT - 3
    assert members(tmp_path / "out")["img00000003.moments.npy"] == npy(moments(3))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (-np.ones((8, 4, 4), np.float32), "negative deviations: log-variance instead of std"),
        (np.full((8, 4, 4), np.nan, np.float32), "numbers that are not finite"),
        (np.ones((7, 4, 4), np.float32), r"shape \(7, 4, 4\), no mean and std"),
        (np.array([{}]), "pickled objects, which is never opened"),
    ],
)
def test_wrong_posteriors_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    root = published(tmp_path / "reg")
    (root / "vae-sd/00000/img-mean-std-00000002.npy").write_bytes(npy(array))
    with pytest.raises(RegscaleError, match=f"sample img00000002: .*00000002.npy is .*{message}"):
        convert(root, tmp_path / "out")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(RegscaleError, match="no folder imagenet_256_vae or images beside vae-sd"):
        convert(tmp_path, tmp_path / "out")
    root = published(tmp_path / "reg")
    (root / "vae-sd/dataset.json").write_text("[]")
    with pytest.raises(RegscaleError, match=r"vae-sd/dataset\.json: does not list files"):
        convert(root, tmp_path / "out")
