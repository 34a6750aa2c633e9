"""A set of pictures to be judged, wherever it was made: a folder, an ADM `.npz`, or shards.

B pictures, SH SW their sides.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from regscale.cluster import Cluster
from regscale.data import shards
from regscale.data._images import SUFFIXES, Unusable, decode, is_picture, opened
from regscale.errors import RegscaleError
from regscale.evaluation._references import read_reference, write_reference

SAMPLES = "a folder of pictures, an ADM .npz with arr_0, or a folder of indexed shards"
BATCH = 50  # pictures that an extractor sees together, as published evaluators do


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Pictures of one size, read when they are asked for; `stream` gives them in their order."""

    name: str
    shape: tuple[int, int, int, int]  # (N, SH, SW, 3)
    stream: Callable[[range, int], Iterator[Tensor]]  # a part, in batches (B, 3, SH, SW) uint8

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, part: range | None = None, *, size: int = BATCH) -> Iterator[Tensor]:
        """Of all pictures or of a part, which has no gaps."""
        return self.stream(range(len(self)) if part is None else part, size)

    def share(self, cluster: Cluster) -> range:
        """This process's part, in whole batches; parts follow each other in the order of ranks."""
        count = -(-len(self) // BATCH)
        first, last = (count * (cluster.rank + i) // cluster.world_size for i in (0, 1))
        return range(min(first * BATCH, len(self)), min(last * BATCH, len(self)))

    def first(self, number: int) -> "Pictures":
        """A set of the first so many."""
        return replace(self, shape=(min(number, len(self)), *self.shape[1:]))

    def head(self, number: int) -> Tensor:
        """The first pictures, (number, 3, SH, SW)."""
        return torch.cat(list(self.batches(range(min(number, len(self))))))

    def digest(self) -> str:
        """Of all pixels in their order."""
        found = xxhash.xxh3_128()
        for batch in self.batches():
            found.update(batch.contiguous().numpy().tobytes())
        return found.hexdigest()

    def write_npz(self, path: Path) -> None:
        """The file of samples that ADM's evaluator reads."""
        write_reference(path, images=self.batches(), image_shape=self.shape)


def of_files(paths: Sequence[Path], *, name: str, size: int | None = None) -> Pictures:
    """Of files in this order; with `size` they are cropped to squares (ADM's crop)."""
    if not paths:
        raise RegscaleError(name, "holds no pictures", found="no file", fix=f"Give {SAMPLES}.")
    first = _load(paths[0], size)

    def stream(part: range, batch_size: int) -> Iterator[Tensor]:
        for start in range(part.start, part.stop, batch_size):
            chosen = paths[start : min(start + batch_size, part.stop)]
            loaded = [_load(path, size) for path in chosen]
            for path, image in zip(chosen, loaded, strict=True):
                if image.shape != first.shape:
                    raise _unlike(path, image, first)
            yield torch.stack(loaded)

    return Pictures(name=name, shape=(len(paths), *first.shape[1:], 3), stream=stream)


def of_npz(path: Path) -> Pictures:
    """Of an ADM file's `arr_0`."""
    held = read_reference(path)
    if held.image_shape is None:
        raise RegscaleError(path, "holds no pictures", found="no arr_0", fix=f"Give {SAMPLES}.")

    def stream(part: range, batch_size: int) -> Iterator[Tensor]:
        place = 0
        for batch in held.images(batch_size):
            inside = batch[max(part.start - place, 0) : max(part.stop - place, 0)]
            if len(inside):
                yield inside
            place += len(batch)
            if place >= part.stop:
                return

    return Pictures(name=path.name, shape=held.image_shape, stream=stream)


def of_source(source: object, *, name: str) -> Pictures:
    """Of a data source, in the order of its samples."""
    read, count = source.read, source.num_samples  # type: ignore[attr-defined]
    height, width = source.image_size  # type: ignore[attr-defined]

    def stream(part: range, batch_size: int) -> Iterator[Tensor]:
        for start in range(part.start, part.stop, batch_size):
            places = range(start, min(start + batch_size, part.stop))
            yield read(places, places).require("images", by="an evaluation").contiguous()

    return Pictures(name=name, shape=(count, height, width, 3), stream=stream)


def of_path(path: Path, *, size: int | None = None) -> Pictures:
    """Whatever lies there; `size` crops what a folder or shards hold, and shards need it."""
    path = path.expanduser()
    if size is not None and size < 1:
        raise RegscaleError("--size", "is positive", found=size, fix="Give pixels, as 256.")
    if path.suffix == ".npz":
        return of_npz(path)
    if path.is_dir() and any(path.glob("*.tar")):
        return _of_shards(path, size)
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if is_picture(p.name) and p.is_file()]
        return of_files(found, name=str(path), size=size)
    raise RegscaleError(
        path, f"is not {SAMPLES}", found="no such folder" if not path.exists() else "a file",
        fix=f"Pictures end in {', '.join(SUFFIXES)}.",
    )  # fmt: skip


def _of_shards(path: Path, size: int | None) -> Pictures:
    if size is None:
        raise RegscaleError(
            path,
            "holds shards, whose pictures may be of any size",
            found="no --size to crop them to",
            fix="Give it, as --size 256; pictures of that size stay as they are.",
        )
    config = shards.Config(urls=(str(path),), fields=("images",), image_size=size)
    return of_source(shards.build(config), name=path.name)


def _load(path: Path, size: int | None) -> Tensor:
    try:
        payload = path.read_bytes()
        if size is not None:
            return decode(payload, size, crop="centre", chance=(0, 0, 0))
        picture, _ = opened(payload)
    except (OSError, Unusable) as error:
        raise RegscaleError(
            path, "cannot be judged", found=error, fix="Remove it, or make it again."
        ) from error
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(picture.height, picture.width, 3).permute(2, 0, 1)


def _unlike(path: Path, image: Tensor, first: Tensor) -> RegscaleError:
    return RegscaleError(
        path,
        f"has another size than the first picture, {first.shape[2]} x {first.shape[1]}",
        found=f"{image.shape[2]} x {image.shape[1]}",
        fix="Give pictures of one size, or a size to crop them to (--size).",
    )
