"""Reference statistics on disk: ADM's `.npz` files and files of one mean and covariance.

An ADM file holds `mu, sigma` of 2048 pool features, `mu_s, sigma_s` of 2023 spatial ones and the
pictures of precision and recall, `arr_0` uint8 (N, SH, SW, 3). Each of the three may be absent.
Files made here name the extractor of their statistics in `evaluator`, beside what ADM reads.
"""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from regscale.errors import RegscaleError
from regscale.evaluation.metrics import Gaussian
from regscale.files import replacing

PIECE = 2**24  # bytes hashed at once
MADE = "Give an ADM reference (mu, sigma, mu_s, sigma_s, arr_0) or a file with mu and sigma."


@dataclass(frozen=True, slots=True)
class Reference:
    """What a file holds. Other statistics give other figures, so `identity` stands beside them."""

    path: Path
    identity: str  # the file's name and a hash of all its bytes
    pool: Gaussian | None = None
    spatial: Gaussian | None = None
    image_shape: tuple[int, int, int, int] | None = None  # (N, SH, SW, 3)
    evaluator: str | None = None  # of the statistics; None: the file does not tell

    def images(self, batch_size: int = 64) -> Iterator[Tensor]:
        """Its pictures as uint8 (B, 3, SH, SW), read batch by batch."""
        if self.image_shape is None:
            raise _refused(self.path, "holds no pictures", "no arr_0")
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            shape, _ = _header(file, self.path)
            num_bytes = int(np.prod(shape[1:]))
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                data = file.read(count * num_bytes)
                if len(data) != count * num_bytes:
                    raise _refused(self.path, "ends within arr_0", f"{len(data)} bytes of a batch")
                batch = np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
                yield torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())


def read_reference(path: Path) -> Reference:
    """The statistics of a file in float64, with its pictures left on the disk."""
    path = Path(path).expanduser()
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            shape = _image_shape(archive, path) if "arr_0" in names else None
        with np.load(path, allow_pickle=False) as arrays:
            pool = _gaussian(path, arrays, "mu", "sigma")
            spatial = _gaussian(path, arrays, "mu_s", "sigma_s")
            evaluator = str(arrays["evaluator"]) if "evaluator" in arrays else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _refused(path, "cannot be read", error) from error
    if pool is None and shape is None:
        raise _refused(path, "holds neither statistics nor pictures", sorted(names))
    return Reference(path, f"{path.name}-{file_digest(path)}", pool, spatial, shape, evaluator)


def write_reference(
    path: Path,
    *,
    pool: Gaussian | None = None,
    spatial: Gaussian | None = None,
    evaluator: str | None = None,
    images: Iterable[Tensor] = (),
    image_shape: tuple[int, int, int, int] | None = None,
) -> None:
    """An `.npz` as ADM's evaluator reads it; `images` are batches of uint8 (B, 3, SH, SW).

    With `images` alone it is a file of samples. The pictures are written as they come, so
    50,000 of them (9.8 GB) never stand in memory. `image_shape` (N, SH, SW, 3) says what comes.
    """
    with (
        replacing(Path(path)) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        if image_shape is not None:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                _write_images(member, images, image_shape)
        if evaluator is not None:
            _write_array(archive, "evaluator", np.array(evaluator))
        for names, value in ((("mu", "sigma"), pool), (("mu_s", "sigma_s"), spatial)):
            if value is not None:
                for name, array in zip(names, (value.mean, value.covariance), strict=True):
                    _write_array(archive, name, array.cpu().numpy())


def file_digest(path: Path) -> str:
    """xxh3 of all bytes of a file."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray[Any, Any]) -> None:
    with archive.open(f"{name}.npy", "w") as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _write_images(
    file: IO[bytes], batches: Iterable[Tensor], shape: tuple[int, int, int, int]
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    count = 0
    for batch in batches:
        assert batch.dtype == torch.uint8, "pictures are uint8"
        assert batch.shape[1:] == (3, *shape[1:3]), "pictures are (B, 3, SH, SW)"
        file.write(batch.cpu().permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        count += len(batch)
    assert count == shape[0], f"{shape[0]} pictures were announced and {count} came"


def _gaussian(path: Path, arrays: np.lib.npyio.NpzFile, mu: str, sigma: str) -> Gaussian | None:
    if mu not in arrays and sigma not in arrays:
        return None
    mean, covariance = (torch.from_numpy(np.asarray(arrays[n], np.float64)) for n in (mu, sigma))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        found = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise _refused(path, f"has {mu} and {sigma} of shapes that do not fit", found)
    return Gaussian(mean, covariance)


def _image_shape(archive: zipfile.ZipFile, path: Path) -> tuple[int, int, int, int]:
    with archive.open("arr_0.npy") as file:
        shape, dtype = _header(file, path)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
        raise _refused(path, "has an arr_0 that is not uint8 (N, SH, SW, 3)", f"{dtype} {shape}")
    return shape[0], shape[1], shape[2], shape[3]


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    read = np.lib.format.read_array_header_2_0 if version == (2, 0) else read
    if read is None:
        raise _refused(path, "has an arr_0 in an unknown version of the npy format", version)
    shape, fortran_order, dtype = read(file)
    if fortran_order:
        raise _refused(path, "has an arr_0 in Fortran order", "columns before rows")
    return shape, dtype


def _refused(path: Path, what: str, found: object) -> RegscaleError:
    return RegscaleError(path, what, found=str(found).rstrip("."), fix=MADE)
