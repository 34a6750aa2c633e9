"""REG's and REPA's own folders as a source: the pairs, what is missing, and a run on them."""

import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from regscale import assemble
from regscale.config import Invalid
from regscale.data import NoiseShapes, batches, reg_folder
from regscale.errors import RegscaleError
from regscale.prepare.__main__ import main
from regscale.training import train
from tests.autoencoders.test_sd_vae import save_tiny
from tests.conftest import MakeConfig
from tests.data.packing import npy, picture
from tests.data.test_shards import source as shards_source
from tests.prepare.test_convert import COUNT, moments, published, spoil


def source(root: Path, **options: object) -> reg_folder.RegFolder:
    return reg_folder.build(reg_folder.Config(root=str(root), image_size=8, **options))  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return published(tmp_path / "reg")


@pytest.mark.parametrize("images", ["imagenet_256_vae", "images"])
def test_a_batch_holds_what_lies_under_one_number(tmp_path: Path, images: str) -> None:
    data = source(published(tmp_path, images=images, seed=3))
    assert data.num_samples == COUNT
    batch = data.read([7, 0, 7], [20, 21, 22])
    assert batch.keys == ("img00000007", "img00000000", "img00000007")
    assert batch.positions.tolist() == [20, 21, 22]
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.images is not None
    pixels = np.random.default_rng(7).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), pixels)
    assert batch.moments is not None
    assert np.array_equal(batch.moments.mean[0].numpy(), moments(7)[:4])
    assert np.array_equal(batch.moments.std[1].numpy(), moments(0)[4:])
    assert batch.moments.mean.dtype == torch.float32


def test_numbers_pair_and_not_the_order_of_names(root: Path) -> None:
    """Files of one number in other folders, with more digits and other words before them."""
    folder = root / "vae-sd"
    (folder / "zz").mkdir()
    for number, name in ((0, "zz/z-00.npy"), (11, "a-000000000011.npy")):
        old = f"{number // 5:05d}/img-mean-std-{number:08d}.npy"
        (folder / old).rename(folder / name)
    batch = source(root).read(range(COUNT), range(COUNT))
    assert batch.moments is not None
    for number in range(COUNT):
        assert np.array_equal(batch.moments.mean[number].numpy(), moments(number)[:4])


def test_it_holds_what_converted_shards_hold(root: Path, tmp_path: Path) -> None:
    main(["convert", str(root), str(tmp_path / "out"), "--workers", "1"])
    packed = shards_source(tmp_path / "out", "images", "labels", "moments")
    folder = source(root)
    assert folder.identities == packed.identities == {"moments": "published sd-vae-ft-mse"}
    one, other = (data.read(range(COUNT), range(COUNT)) for data in (folder, packed))
    assert set(one.keys) == set(other.keys)
    order = [other.keys.index(key) for key in one.keys]
    for name in ("images", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name)[order])
    assert one.moments is not None
    assert other.moments is not None
    assert torch.equal(one.moments.mean, other.moments.mean[order])
    assert torch.equal(one.moments.std, other.moments.std[order])


def test_only_wanted_fields_are_read(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    batch = source(root, fields=("moments", "labels")).read([1], [0])
    assert batch.images is None
    assert batch.moments is not None
    assert source(root, fields=("labels",)).identities == {}


def test_every_sample_comes_once_an_epoch_through_the_common_loader(root: Path) -> None:
    shapes = NoiseShapes(latents=(4, 4, 4), tokens=())
    seen = []
    for workers in (0, 2):
        loader = batches(source(root), shapes, seed=1, start=0, batch_size=6, num_workers=workers)
        seen.append([key for _ in range(4) for key in next(loader).keys])
        loader.close()
    assert seen[0] == seen[1]
    assert len(set(seen[0][:COUNT])) == len(set(seen[0][COUNT:])) == COUNT


def test_it_travels_and_a_worker_walks_no_folder(root: Path) -> None:
    data = source(root)
    assert data.num_samples == COUNT
    sent = pickle.loads(pickle.dumps(data))
    (root / "vae-sd/dataset.json").unlink()
    assert sent.read([3], [0]).keys == ("img00000003",)


def test_the_fingerprint_tells_names_labels_and_size_but_not_the_place(tmp_path: Path) -> None:
    made = source(published(tmp_path / "a")).fingerprint
    assert source(published(tmp_path / "b", seed=5)).fingerprint == made
    other = reg_folder.Config(root=str(tmp_path / "a"), image_size=16)
    assert reg_folder.build(other).fingerprint != made
    for folder in ("vae-sd", "imagenet_256_vae"):
        path = tmp_path / "b" / folder / "dataset.json"
        listed = [[name, label + 1] for name, label in json.loads(path.read_text())["labels"]]
        path.write_text(json.dumps({"labels": listed}))
    assert source(tmp_path / "b").fingerprint != made


# What is missing or damaged


def test_what_does_not_pair_is_named(root: Path) -> None:
    spoil(root)
    with pytest.raises(RegscaleError) as caught:
        _ = source(root).num_samples
    assert "files in imagenet_256_vae and vae-sd that do not pair by number" in caught.value.what
    assert caught.value.found.endswith(" and 3 more")
    assert "prepare convert --policy skip" in caught.value.fix


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("vae-sd/00000/img-mean-std-00000002.npy", r"img00000002\.png has no posterior in vae-sd"),
        ("imagenet_256_vae/00001/img00000007.png", r"00000007\.npy has no picture in imagenet_"),
    ],
)
def test_a_missing_file_is_named(root: Path, file: str, message: str) -> None:
    (root / file).unlink()
    with pytest.raises(RegscaleError, match=message):
        _ = source(root).num_samples


def test_missing_labels_and_folders_are_named(root: Path) -> None:
    for folder in ("vae-sd", "imagenet_256_vae"):
        (root / folder / "dataset.json").unlink()
    with pytest.raises(RegscaleError, match=r"has no label in dataset\.json; .* and 9 more"):
        _ = source(root).num_samples
    with pytest.raises(RegscaleError, match="no folder photos beside vae-sd; found imagenet_256_v"):
        _ = source(root, images="photos").num_samples
    with pytest.raises(RegscaleError, match="beside vae-sd; found no such folder"):
        _ = source(root / "none").num_samples
    for name in ("images", "vae-sd"):
        (root / "empty" / name).mkdir(parents=True)
    with pytest.raises(RegscaleError, match="found no files at all"):
        _ = source(root / "empty").num_samples


POSTERIOR, PICTURE = "vae-sd/00000/img-mean-std-00000002.npy", "imagenet_256_vae/00000/img00000002"
DAMAGE = {
    "cut": (POSTERIOR, npy(moments(2))[:-1], r"as a posterior; found 511 bytes of an array"),
    "pickle": (POSTERIOR, npy(np.array([{}])), "pickled objects, which is never opened"),
    "variance": (POSTERIOR, npy(-np.ones((8, 4, 4), np.float32)), "log-variance instead of std"),
    "numbers": (POSTERIOR, npy(np.full((8, 4, 4), np.inf, np.float32)), "are not finite"),
    "odd": (POSTERIOR, npy(np.ones((7, 4, 4), np.float32)), "no mean and std of"),
    "shape": (
        POSTERIOR, npy(np.ones((8, 2, 2), np.float32)),
        r"has not the shape of .*00000001\.npy, \(8, 4, 4\); found \(8, 2, 2\)",
    ),
    "picture": (f"{PICTURE}.png", picture(2)[:60], "cannot be read as a picture; found a damaged"),
    "html": (f"{PICTURE}.png", b"<html>", "found no JPEG, PNG or WebP picture"),
    "size": (
        f"{PICTURE}.png", picture(2, size=16),
        r"size that data\.image_size tells.*found a picture of 16 x 16 pixels, not 8 x 8, .*"
        r"Set data\.image_size to the size of the pictures",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bad_file_is_named_when_its_turn_comes(root: Path, name: str) -> None:
    file, payload, message = DAMAGE[name]
    (root / file).write_bytes(payload)
    data = source(root)
    assert data.read([1, 3], [0, 1]).keys == ("img00000001", "img00000003")
    with pytest.raises(RegscaleError, match=message) as caught:
        data.read([1, 2], [0, 1])
    assert caught.value.where == str(root / file)


def test_a_file_that_has_gone_since_is_named(root: Path) -> None:
    data = source(root)
    assert data.num_samples == COUNT
    os.unlink(root / POSTERIOR)
    with pytest.raises(RegscaleError, match=r"as a posterior; found .*No such file"):
        data.read([2], [0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fields": ("moments", "dinov2")}, "names what there is"),
        ({"fields": ()}, "names what there is"),
        ({"image_size": 0}, "is positive"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        reg_folder.Config(**settings)  # type: ignore[arg-type]


# A run


@pytest.fixture
def overrides(root: Path, tmp_path: Path) -> list[str]:
    """The tiny run on the folder; its autoencoder has the published one's name."""
    model = save_tiny(tmp_path / "sd-vae-ft-mse", 0)
    tower = f"{{kind: sd_vae, model: {model}, decoder: null, factor: 2}}"
    return [
        *(f"autoencoder={tower}", "data.kind=reg_folder", f"data.root={root}"),
        *("data.image_size=8", "training.num_steps=2", "training.checkpoint_every=1"),
    ]


def test_a_run_trains_on_it_by_overrides_and_resumes_where_it_was_moved(
    tiny: MakeConfig, overrides: list[str], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert train(assemble.job(tiny(*overrides))).step == 2
    assert any("'moments' has no hash" in message for message in caplog.messages)
    root.rename(root.parent / "moved")
    moved = [f"data.root={root.parent / 'moved'}", "training.num_steps=3"]
    assert train(assemble.job(tiny(*overrides, *moved))).step == 3


def test_a_run_with_another_autoencoder_is_refused(
    tiny: MakeConfig, overrides: list[str], tmp_path: Path
) -> None:
    other = f"autoencoder.model={save_tiny(tmp_path / 'sd-vae-ft-ema', 1)}"
    with pytest.raises(RegscaleError, match="stored: published sd-vae-ft-mse; current: sd_vae-"):
        assemble.job(tiny(*overrides, other))
    claimed = "data.encoder=sd-vae-ft-ema"
    assert assemble.job(tiny(*overrides, other, claimed)).source.num_samples == COUNT


def test_posteriors_of_another_size_are_refused_before_the_first_step(
    tiny: MakeConfig, overrides: list[str], root: Path
) -> None:
    for path in (root / "imagenet_256_vae").rglob("*.png"):
        path.write_bytes(picture(1, size=16))
    with pytest.raises(RegscaleError, match=r"'moments' has the shape \(4, 8, 8\) of this run"):
        train(assemble.job(tiny(*overrides, "data.image_size=16")))
