"""The same samples three times: as the published code keeps them, and as shards in fp32 and fp16.

Latents of 256 px: moments (8, 32, 32), mean then std, and a picture in PNG, JPEG or WebP.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from regscale.data import index_shard, merge_folder

NUM_CLASSES = 1000
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is read."""

    samples: int = 8192
    samples_a_shard: int = 512
    pictures: int = 256  # samples of the sets that hold pictures
    image_size: int = 256
    latent_size: int = 32


def published(root: Path, size: Size) -> Path:
    """REG's folders: `vae-sd/00000/img-mean-std-00000000.npy`, `images/00000/img00000000.png` and
    `dataset.json`; the pictures are as many as the picture sets hold."""
    labels = []
    for number in range(size.samples):
        folder = f"{number // 1000:05d}"
        for kind in ("vae-sd", "images"):
            (root / kind / folder).mkdir(parents=True, exist_ok=True)
        name = f"{folder}/img-mean-std-{number:08d}.npy"
        np.save(root / "vae-sd" / name, moments(number, size))
        labels.append([name, number * 37 % NUM_CLASSES])
        if number < size.pictures:
            (root / "images" / folder / f"img{number:08d}.png").write_bytes(
                picture(number, size, "png")
            )
    (root / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


def shards(root: Path, size: Size, *, dtype: str, image: str | None = None) -> Path:
    """Indexed shards of moments and labels, and of a picture in one of `FORMATS`."""
    root.mkdir(parents=True)
    number = size.pictures if image else size.samples
    paths = []
    for first in range(0, number, size.samples_a_shard):
        paths.append(root / f"{len(paths):05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in range(first, min(number, first + size.samples_a_shard)):
                fields = {f"{image}": picture(sample, size, image)} if image else {}
                fields["cls"] = str(sample * 37 % NUM_CLASSES).encode()
                fields["moments.npy"] = npy(moments(sample, size).astype(dtype))
                _add(tar, f"{sample:08d}", fields)
        index_shard(paths[-1])
    merge_folder(root, paths)
    return root


def moments(number: int, size: Size) -> np.ndarray:
    """(8, H, W) fp32; all of them representable in fp16, so that both precisions are equal."""
    rng = np.random.default_rng(number)
    side = size.latent_size
    values = rng.standard_normal((8, side, side), dtype=np.float32)
    values[4:] = 0.1 * np.abs(values[4:])
    return values.astype(np.float16).astype(np.float32)


def picture(number: int, size: Size, kind: str) -> bytes:
    """Smooth shapes with noise on them, so that files are about as large as photographs' are."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    side = (size.image_size, size.image_size)
    smooth = np.asarray(coarse.resize(side, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = (smooth + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, FORMATS[kind])
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    """The file that `np.save` writes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _add(tar: tarfile.TarFile, key: str, fields: Mapping[str, bytes]) -> None:
    for field, payload in fields.items():
        info = tarfile.TarInfo(f"{key}.{field}")
        info.size = len(payload)
        tar.addfile(info, io.BytesIO(payload))
