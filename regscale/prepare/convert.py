"""Make shards of the folders that REG and REPA prepare: pictures, posteriors and dataset.json.

A picture and its posterior are found by the number in their names (img00000007.png and
img-mean-std-00000007.npy), whatever the order of the files. Files without a partner are told.
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regscale.data import _fields
from regscale.data._images import Unusable
from regscale.errors import RegscaleError
from regscale.prepare import _packing, _plan
from regscale.prepare._packing import Job, Task, pack
from regscale.prepare._pictures import Shaping
from regscale.prepare._sources import Entry, is_picture
from regscale.prepare._summary import finish
from regscale.prepare._tally import Removed, Sample

PICTURES = ("imagenet_256_vae", "images")  # the folders of REG and REPA
LABELS = "dataset.json"
FIELD = "moments.npy"
KEEP = Shaping(size=0, crop="none", format="keep", quality=0)

Damage = list[tuple[str, str]]  # (file, what is wrong)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="holds the folders of pictures and posteriors")
    parser.add_argument("out", type=Path, help="the folder of the shards")
    parser.add_argument("--images", help=f"folder of the pictures: {' or '.join(PICTURES)}")
    parser.add_argument("--moments", default="vae-sd", help="folder of the posteriors")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of stored posteriors"
    )
    parser.add_argument(
        "--autoencoder-identity", default="published sd-vae-ft-mse",
        help="of the autoencoder that made the posteriors; training compares it with its own",
    )  # fmt: skip
    _packing.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Pair, plan, pack; the rank that finishes last joins the indexes."""
    images = _images(options)
    entries, damage = pairs(options.source, images, options.moments)
    if damage and options.policy == "fail":
        sys.stdout.writelines(f"{file}: {what}\n" for file, what in damage)
        raise RegscaleError(
            options.source,
            "holds files that do not pair",
            found=f"{len(damage):,}, listed above, the first {damage[0][0]}",
            fix="Restore them, or take --policy skip.",
        )
    if not entries:
        raise RegscaleError(
            options.source,
            "holds no pictures with posteriors",
            found=f"nothing in {images} and {options.moments} that pairs by number",
            fix="Name the folders: --images and --moments.",
        )
    job = _job(options, entries)
    if pack(job, workers=options.workers):
        finish(job, damage=damage)


def _job(options: argparse.Namespace, entries: Sequence[Entry]) -> Job:
    packer = Pairs(options.source, options.dtype)
    tasks = _plan.tasks_of(entries, shuffled=True)
    shard_bytes = int(options.shard_mb * 1e6)
    number = _plan.samples_per_shard(tasks, packer.size_of, shard_bytes=shard_bytes)
    return Job(
        out=options.out,
        shards=_plan.shards(tasks, number),
        packer=packer,
        settings={
            "command": "convert",
            "dtype": options.dtype,
            "identity": options.autoencoder_identity,
            "shard_mb": options.shard_mb,
            "listing": _plan.digest((), tasks),
        },
        policy=options.policy,
        identities={FIELD: options.autoencoder_identity},
    )


@dataclass(frozen=True, slots=True)
class Pairs:
    """Samples with a picture, its class and its posterior; the picture's bytes stay as they are."""

    root: Path
    dtype: str

    def samples(self, tasks: Sequence[Task]) -> Iterator[Sample | Removed]:
        for task in tasks:
            try:
                yield self.sample(task)
            except (Unusable, OSError) as error:
                yield Removed(task[0], "damaged", str(error))

    def sample(self, task: Task) -> Sample:
        key, label, (image, moments) = task
        picture, payload = KEEP.shaped((self.root / image).read_bytes())
        posterior = self._posterior(moments)
        return key, {picture: payload, "cls": str(label).encode(), FIELD: posterior}

    def size_of(self, task: Task) -> int:
        """Bytes of a sample."""
        return sum(len(payload) for payload in self.sample(task)[1].values())

    def _posterior(self, file: str) -> bytes:
        payload = (self.root / file).read_bytes()
        try:
            return posterior(payload, self.dtype)
        except Unusable as error:
            raise Unusable(f"{file} is {error}") from error


def posterior(payload: bytes, dtype: str) -> bytes:
    """An npy file of means and standard deviations (2C, H, W), in the type that is asked for."""
    values = _fields.array(memoryview(payload))
    if values.ndim not in (3, 4) or values.shape[-3] % 2 or (values.ndim == 4 and len(values) > 2):
        raise Unusable(f"an array of shape {values.shape}, no mean and std of (2C, H, W)")
    stored = values.astype(dtype)
    if not np.isfinite(stored).all():
        raise Unusable(f"an array with numbers that {dtype} cannot hold")
    if (np.split(values, 2, axis=-3)[1] < 0).any():
        raise Unusable("an array with negative deviations: log-variance instead of std?")
    if values.dtype == np.dtype(dtype):
        return payload
    file = io.BytesIO()
    np.save(file, stored, allow_pickle=False)
    return file.getvalue()


def pairs(root: Path, images: str, moments: str) -> tuple[list[Entry], Damage]:
    """Pictures with posterior and label, in the order of their numbers, and what does not pair."""
    damage: Damage = []
    pictures = _numbered(root, images, damage)
    posteriors = _numbered(root, moments, damage)
    labels = _labels(root, (moments, images), damage)
    entries = []
    for number in sorted({*pictures, *posteriors, *labels}):
        picture, posterior = pictures.get(number), posteriors.get(number)
        name = picture or posterior or f"number {number}"
        lacking = [
            what
            for what, there in (
                (f"picture in {images}", picture is not None),
                (f"posterior in {moments}", posterior is not None),
                (f"label in {LABELS}", number in labels),
            )
            if not there
        ]
        if lacking:
            damage.append((name, f"has no {' and no '.join(lacking)}"))
        elif picture and posterior:
            base = picture.rpartition("/")[2]
            entries.append(Entry(base, labels[number], [picture, posterior]))
    return entries, damage


def _numbered(root: Path, folder: str, damage: Damage) -> dict[int, str]:
    """Files below a folder by the number in their names."""
    found: dict[int, str] = {}
    for path in sorted((root / folder).rglob("*")):
        name = path.relative_to(root).as_posix()
        if not (is_picture(path.name) or path.suffix == ".npy"):
            continue
        number = _number(name)
        if number is None:
            damage.append((name, "has no number in its name"))
        elif number in found:
            damage.append((name, f"has the number of {found[number]}"))
        else:
            found[number] = name
    return found


def _number(name: str) -> int | None:
    match = re.search(r"(\d+)\.\w+$", name)
    return int(match[1]) if match else None


def _labels(root: Path, folders: Sequence[str], damage: Damage) -> dict[int, int]:
    """Class by number, from the dataset.json of each folder; they must not contradict."""
    found: dict[int, int] = {}
    for folder in folders:
        path = root / folder / LABELS
        for name, label in _listed(path) if path.exists() else ():
            number = _number(name)
            where = f"{folder}/{LABELS}"
            if number is None:
                damage.append((where, f"names {name}, which has no number"))
            elif found.setdefault(number, label) != label:
                damage.append((where, f"says {name} is {label}, elsewhere it is {found[number]}"))
    return found


def _listed(path: Path) -> list[tuple[str, int]]:
    try:
        labels = json.loads(path.read_text())["labels"] or []
        return [(str(name), int(label)) for name, label in labels]
    except (ValueError, KeyError, TypeError) as error:
        raise RegscaleError(
            path,
            "does not list files and classes",
            found=repr(error),
            fix='It holds {"labels": [["00000/img-mean-std-00000000.npy", 6], ...]}.',
        ) from error


def _images(options: argparse.Namespace) -> str:
    """The folder of the pictures."""
    names = (options.images,) if options.images else PICTURES
    there = [name for name in names if (options.source / name).is_dir()]
    if there and (options.source / options.moments).is_dir():
        return str(there[0])
    raise RegscaleError(
        options.source,
        f"has no folder {' or '.join(names)} beside {options.moments}",
        found=", ".join(sorted(p.name for p in options.source.glob("*") if p.is_dir())) or "none",
        fix="Name the folders: --images and --moments.",
    )
