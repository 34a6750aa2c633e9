"""A folder of class folders, and ADM's centre crop."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regscale.data import NoiseShapes, batches, image_folder, sample_indices
from regscale.data._crop import centre_crop
from regscale.errors import RegscaleError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, name in enumerate(("n02", "n01", "n03")):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (40 + label, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "n01" / "readme.txt").write_text("not an image")
    return tmp_path


def source(root: Path, size: int = 16) -> image_folder.ImageFolder:
    return image_folder.build(image_folder.Config(root=str(root), size=size))


def test_classes_are_numbered_in_the_order_of_their_names(root: Path) -> None:
    data = source(root)
    assert data.num_samples == 9
    batch = data.read([0, 3, 8], [5, 6, 7])
    assert batch.keys == ("n01/0.png", "n02/0.png", "n03/2.png")
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.positions.tolist() == [5, 6, 7]
    assert batch.images is not None
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.dtype == torch.uint8


def test_a_crop_is_the_middle_and_halves_large_pictures_first() -> None:
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 200
    assert int(centre_crop(Image.fromarray(pixels), 16).min()) == 200
    fine = np.indices((64, 64)).sum(axis=0) % 2 * 255  # a checkerboard averages to grey
    made = centre_crop(Image.fromarray(fine.astype(np.uint8)), 16)
    assert made.shape == (3, 16, 16)
    assert int((made.int() - 127).abs().max()) <= 1


def test_every_sample_comes_once_an_epoch_whatever_the_ranks_and_workers(root: Path) -> None:
    shapes = NoiseShapes(latents=(1, 2, 2), tokens=())
    orders = []
    for ranks, workers in ((1, 0), (3, 0), (3, 2)):
        keys: list[str] = []
        loaders = [
            batches(
                source(root), shapes, seed=1, start=0, batch_size=6,
                rank=r, world_size=ranks, num_workers=workers,
            )
            for r in range(ranks)
        ]  # fmt: skip
        for _ in range(3):
            keys += [key for loader in loaders for key in next(loader).keys]
        orders.append(keys)
    assert orders[0] == orders[1] == orders[2]
    assert len(set(orders[0][:9])) == 9
    assert set(orders[0][9:]) == set(orders[0][:9])
    assert orders[0][9:] != orders[0][:9]


def test_a_run_may_begin_at_any_counter() -> None:
    whole = sample_indices(range(100), size=7, seed=3)
    assert sample_indices(range(40, 100), size=7, seed=3) == whole[40:]


def test_the_fingerprint_tells_names_and_size(root: Path) -> None:
    before = source(root).fingerprint
    assert source(root).fingerprint == before
    assert source(root, size=8).fingerprint != before
    (root / "n03" / "2.png").rename(root / "n03" / "9.png")
    assert source(root).fingerprint != before


def test_it_travels_to_a_worker(root: Path) -> None:
    assert pickle.loads(pickle.dumps(source(root))).num_samples == 9


def test_a_damaged_image_is_named(root: Path) -> None:
    (root / "n02" / "1.png").write_bytes(b"no image")
    with pytest.raises(RegscaleError, match=r"n02/1\.png: cannot be read as an image"):
        source(root).read([4], [0])


def test_an_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match=r"holds no images in class folders; found 0 folders"):
        assert source(tmp_path).num_samples
