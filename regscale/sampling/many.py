"""Many images over all processes, each written whole; what is there already is not drawn again.

Products round differently at another batch shape, and in some libraries at another row of it. So
the list of images is cut into units by index, and the network sees a unit always whole, whoever
draws it: every image has the same bits from any number of processes, at any batch size, and after
any kill.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor

from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.files import replacing
from regscale.progress import progress
from regscale.sampling.guidance import Config as GuidanceConfig
from regscale.sampling.pictures import open_folder, png_text, to_picture
from regscale.sampling.sampler import Sampler

log = logging.getLogger(__name__)

UNIT = 32  # images that go through the network together; part of what a picture's bits depend on
WAIT_SECONDS = 24 * 3600.0  # a process may wait so long for the others' pictures
MAKING = "making.json"


class Wanted(NamedTuple):
    """One image: what a conditioner parses (a class or a caption), and its seed."""

    text: str
    seed: int


def draw(
    sampler: Sampler,
    wanted: Sequence[Wanted],
    folder: Path,
    *,
    guidance: GuidanceConfig,
    facts: Mapping[str, object],
    cluster: Cluster,
    batch_size: int = UNIT,
    unit: int = UNIT,
    given: Sequence[Tensor | None] = (),
) -> int:
    """Writes image i of `wanted` as `{i:06d}.png`, and returns how many were missing. Collective.

    A process draws `batch_size` images, rounded up to whole units, between two rounds of writing.
    `given` are tokens (1, K, R) that all images have, of each target or None.
    `facts` go into each picture's text and, with a digest of `wanted`, into the folder's
    making.json: a folder of other facts is refused, so that no set is of two makings.
    """
    making = {**facts, "unit": unit, "images": digest(wanted)}
    missing = cluster.from_first(lambda: _open(folder, making, wanted, unit))
    own = missing[cluster.rank :: cluster.world_size]
    per_round = -(-batch_size // unit)
    rounds = [own[i : i + per_round] for i in range(0, len(own), per_round)]

    def count(units: Sequence[int]) -> int:
        return sum(len(wanted[u * unit : (u + 1) * unit]) for u in units)

    def work() -> None:
        what = f"rank 0 of {cluster.world_size} draws" if cluster.world_size > 1 else "drawing"
        with progress(count(own), what=what, unit="images") as advance:
            for part in rounds:
                images = [
                    draw_unit(sampler, wanted, u, guidance=guidance, unit=unit, given=given)
                    for u in part
                ]
                for number, batch in zip(part, images, strict=True):
                    _write(folder, wanted, batch, facts, start=number * unit)
                advance(count(part))

    cluster.together(work)
    cluster.from_first(lambda: _clear(folder))
    return count(missing)


def shares(
    sampler: Sampler,
    wanted: Sequence[Wanted],
    *,
    guidance: GuidanceConfig,
    cluster: Cluster,
    unit: int = UNIT,
) -> Iterator[tuple[range, Tensor]]:
    """(indices, images (B, 3, SH, SW) uint8) of this process's units, written nowhere.

    Every process goes through as many units, some with no index left, so that a model may be used
    that lies in parts on all of them.
    """
    count = -(-len(wanted) // unit)
    for first in range(0, count, cluster.world_size):
        number = first + cluster.rank
        images = draw_unit(sampler, wanted, min(number, count - 1), guidance=guidance, unit=unit)
        held = range(number * unit, min((number + 1) * unit, len(wanted)))
        yield held, images[: len(held)]


def draw_unit(
    sampler: Sampler,
    wanted: Sequence[Wanted],
    number: int,
    *,
    guidance: GuidanceConfig,
    unit: int = UNIT,
    given: Sequence[Tensor | None] = (),
) -> Tensor:
    """The images of one unit (B, 3, SH, SW) uint8; the last is filled up by its last image."""
    part = list(wanted[number * unit : (number + 1) * unit])
    whole = part + part[-1:] * (unit - len(part))
    condition = sampler.conditioner.parse([each.text for each in whole])
    return sampler(condition, [each.seed for each in whole], guidance, given)[: len(part)]


def image_path(folder: Path, index: int) -> Path:
    """Where image `index` of a set lies."""
    return folder / f"{index:06d}.png"


def digest(wanted: Sequence[Wanted]) -> str:
    """Of all conditions and seeds in their order."""
    return xxhash.xxh3_128_hexdigest(json.dumps(wanted).encode())


def _open(
    folder: Path, making: Mapping[str, object], wanted: Sequence[Wanted], unit: int
) -> list[int]:
    """The numbers of units of which an image is missing."""
    open_folder(folder)
    _same_making(folder / MAKING, json.loads(json.dumps(making, default=str)))
    there = {path.name for path in folder.glob("*.png")}
    absent = [i for i in range(len(wanted)) if image_path(folder, i).name not in there]
    if 0 < len(absent) < len(wanted):
        log.info("%s: %s of %s images are missing", folder, f"{len(absent):,}", f"{len(wanted):,}")
    return sorted({i // unit for i in absent})


def _same_making(path: Path, making: dict[str, object]) -> None:
    if not path.exists():
        with replacing(path) as file:
            file.write((json.dumps(making, indent=1, sort_keys=True) + "\n").encode())
        return
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RegscaleError(
            path, "cannot be read", found=error, fix="Remove the folder, or choose another."
        ) from error
    for key in sorted({*held, *making}):
        if held.get(key) != making.get(key):
            raise RegscaleError(
                path.parent,
                f"holds images of another making: {key} is {making.get(key)}",
                found=held.get(key),
                fix="Choose another folder, or remove this one.",
            )


def _write(
    folder: Path,
    wanted: Sequence[Wanted],
    images: Tensor,
    facts: Mapping[str, object],
    *,
    start: int,
) -> None:
    for index, image in enumerate(images, start):
        path = image_path(folder, index)
        if not path.exists():
            about = {"condition": wanted[index].text, "seed": wanted[index].seed, **facts}
            with replacing(path) as file:
                file.write(png(image, about))


def png(image: Tensor, facts: Mapping[str, object]) -> bytes:
    """A (3, SH, SW) uint8 image as a PNG file whose text holds the facts."""
    data = io.BytesIO()
    to_picture(image).save(data, "PNG", pnginfo=png_text(facts))
    return data.getvalue()


def read_images(folder: Path, indices: Sequence[int]) -> Tensor:
    """Images of a set as (B, 3, SH, SW) uint8."""
    loaded = []
    for index in indices:
        with Image.open(image_path(folder, index)) as picture:
            loaded.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1))
    return torch.stack(loaded)


def _clear(folder: Path) -> None:
    """Remove what a killed process had half written."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
