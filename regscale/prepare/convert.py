"""Make shards of the folders that REG and REPA prepare: pictures, posteriors and dataset.json.

A picture and its posterior are found by the number in their names (img00000007.png and
img-mean-std-00000007.npy), whatever the order of the files. Files without a partner are told.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regscale.data._images import Unusable
from regscale.data._pairs import ENCODER, MOMENTS, PICTURES, Pair, pairs, picture_folder, posterior
from regscale.errors import RegscaleError
from regscale.prepare import _packing, _plan
from regscale.prepare._encoders import npy
from regscale.prepare._packing import Job, Task, pack
from regscale.prepare._pictures import Shaping
from regscale.prepare._sources import Entry
from regscale.prepare._summary import finish
from regscale.prepare._tally import Removed, Sample, made

FIELD = "moments.npy"
KEEP = Shaping(size=0, crop="none", format="keep", quality=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="holds the folders of pictures and posteriors")
    parser.add_argument("out", type=Path, help="the folder of the shards")
    parser.add_argument(
        "--images", default="", help=f"folder of the pictures: {' or '.join(PICTURES)}"
    )
    parser.add_argument("--moments", default=MOMENTS, help="folder of the posteriors")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of stored posteriors"
    )
    parser.add_argument(
        "--autoencoder-identity", default=f"published {ENCODER}",
        help="of the autoencoder that made the posteriors; training compares it with its own",
    )  # fmt: skip
    _packing.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Pair, plan, pack; the rank that finishes last joins the indexes."""
    _packing.check("convert", options)
    images = picture_folder(options.source, options.images, options.moments)
    found, damage = pairs(options.source, images, options.moments)
    if damage and options.policy == "fail":
        sys.stdout.writelines(f"{file}: {what}\n" for file, what in damage)
        raise RegscaleError(
            options.source,
            "holds files that do not pair",
            found=f"{len(damage):,}, listed above, the first {damage[0][0]}",
            fix="Restore them, or take --policy skip.",
        )
    if not found:
        raise RegscaleError(
            options.source,
            "holds no pictures with posteriors",
            found=f"nothing in {images} and {options.moments} that pairs by number",
            fix="Name the folders: --images and --moments.",
        )
    job = _job(options, found)
    if pack(job, workers=options.workers):
        finish(job, damage=damage)


def _job(options: argparse.Namespace, found: Sequence[Pair]) -> Job:
    packer = Pairs(options.source, options.dtype)
    entries = [
        Entry(pair.picture.rpartition("/")[2], pair.label, [pair.picture, pair.moments])
        for pair in found
    ]
    tasks = _plan.tasks_of(entries, shuffled=True)
    number = _plan.samples_per_shard(tasks, packer.sample, shard_mb=options.shard_mb)
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
        return made(self.sample, tasks)

    def sample(self, task: Task) -> Sample:
        key, label, (image, moments) = task
        picture, payload = KEEP.shaped((self.root / image).read_bytes())
        return key, {picture: payload, "cls": str(label).encode(), FIELD: self._posterior(moments)}

    def _posterior(self, file: str) -> bytes:
        payload = (self.root / file).read_bytes()
        try:
            values = posterior(payload)
            if values.dtype == np.dtype(self.dtype):
                return payload
            stored = values.astype(self.dtype)
            if not np.isfinite(stored).all():
                raise Unusable(f"an array with numbers that {self.dtype} cannot hold")
        except Unusable as error:
            raise Unusable(f"{file} is {error}") from error
        return npy(stored)
