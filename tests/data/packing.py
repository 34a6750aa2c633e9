"""Small shards for tests: packed by `tarfile`, damaged by hand."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from regscale.data._index import index_shard, merge_folder

Sample = tuple[str, Mapping[str, bytes]]


def pack(path: Path, samples: Iterable[Sample], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for key, fields in samples:
            for field, payload in fields.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype.hasobject)
    return file.getvalue()


def picture(number: int, *, size: int = 8, kind: str = "PNG", mode: str = "RGB") -> bytes:
    return picture_of(number, (size, size), kind=kind, mode=mode)


def picture_of(
    number: int, size: tuple[int, int], *, kind: str = "PNG", mode: str = "RGB"
) -> bytes:
    """Noise of this height and width."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def sample(number: int) -> Sample:
    """Key, picture, label, caption, moments with a flip, and one token of a target."""
    rng = np.random.default_rng(number)
    moments = np.abs(rng.standard_normal((2, 8, 4, 4))).astype(np.float16)
    fields = {
        "png": picture(number),
        "cls": str(number % 10).encode(),
        "txt": f"caption {number}".encode(),
        "moments.npy": npy(moments),
        "vit.npy": npy(rng.standard_normal((2, 1, 6)).astype(np.float16)),
    }
    return f"s{number:05d}", fields


def folder_of(root: Path, counts: Iterable[int], *, keep: Iterable[str] | None = None) -> Path:
    """A folder of indexed shards with so many samples each."""
    number, shards = 0, []
    for place, count in enumerate(counts):
        samples = [sample(i) for i in range(number, number + count)]
        if keep is not None:
            samples = [(key, {f: fields[f] for f in keep}) for key, fields in samples]
        shards.append(pack(root / f"{place:05d}.tar", samples))
        number += count
    index(root)
    return root


def index(root: Path) -> None:
    shards = sorted(root.glob("*.tar"))
    for shard in shards:
        index_shard(shard)
    merge_folder(root, shards)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
