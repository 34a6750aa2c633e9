"""Make shards of pictures with classes: ADM's centre crop, in any number of processes.

SOURCE is a folder of class folders, ILSVRC2012_img_train.tar as distributed, a folder of class
tars, a zip, a folder of parquet files, or of WebDataset shards. Start it again after a kill: what
is finished stays. Under srun or torchrun each rank makes its share.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from regscale.errors import RegscaleError
from regscale.prepare import _packing, _plan
from regscale.prepare._packing import Job, Task, pack
from regscale.prepare._pictures import Shaping
from regscale.prepare._sources import Listing, Source, open_source
from regscale.prepare._summary import finish
from regscale.prepare._tally import Removed, Sample, damage_fault, made

log = logging.getLogger(__name__)

FORMATS = ("jpg", "png", "webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder, tar, zip, parquet files or shards")
    parser.add_argument("out", type=Path, help="the folder of the shards")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side: 256 or 512")
    crops = {
        "centre": "ADM's crop to a square",
        "resize": "the short side gets the size, nothing is cut",
        "none": "as it is",
    }
    text = "; ".join(f"{name}: {about}" for name, about in crops.items())
    parser.add_argument("--crop", choices=list(crops), default="centre", help=text)
    parser.add_argument(
        "--format", choices=FORMATS, help="png by default; the bytes as they are with --crop none"
    )
    parser.add_argument("--quality", type=int, default=95, help="of jpg and webp, 1 to 100")
    parser.add_argument(
        "--order", choices=("shuffled", "sorted"),
        help="of the samples; shuffled by default, for parquet the order of its rows",
    )  # fmt: skip
    parser.add_argument("--validation", type=int, default=0, help="samples to hold out")
    parser.add_argument("--within", default="", help="the folder of the classes inside a zip")
    parser.add_argument("--split", default="", help="of parquet files: how their names begin")
    _packing.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """List, plan, pack; the rank that finishes last joins the indexes."""
    _check(options)
    source = open_source(options.source, within=options.within, split=options.split)
    listing = _listed(source, options)
    keeps = options.crop == "none" and options.format is None
    shaping = Shaping(
        size=options.size,
        crop=options.crop,
        format="keep" if keeps else options.format or "png",
        quality=options.quality,
    )
    job = _job(options, Pictures(source, shaping), listing)
    log.info("%s pictures for %s shards", f"{len(listing.entries):,}", f"{len(job.shards):,}")
    if pack(job, workers=options.workers):
        finish(job, classes=listing.classes, damage=listing.damage)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Samples with a picture and a class."""

    source: Source
    shaping: Shaping

    def samples(self, tasks: Sequence[Task]) -> Iterator[Sample | Removed]:
        return made(self.sample, tasks)

    def sample(self, task: Task) -> Sample:
        key, label, place = task
        picture, payload = self.shaping.shaped(self.source.read(place))
        return key, {picture: payload, "cls": str(label).encode()}


def _listed(source: Source, options: argparse.Namespace) -> Listing:
    listing = source.listing()
    if listing.damage and options.policy == "fail":
        raise damage_fault(*listing.damage[0])
    if len(listing.entries) <= options.validation:
        raise RegscaleError(
            options.source,
            "holds too few pictures in classes",
            found=f"{len(listing.entries):,}, with --validation {options.validation:,}",
            fix="Give the folder that holds one folder a class; --within names it inside a zip.",
        )
    return listing


def _job(options: argparse.Namespace, packer: Pictures, listing: Listing) -> Job:
    by_rows = options.order is None and type(packer.source).__name__ == "Parquet"
    order = "sorted" if by_rows else options.order or "shuffled"
    tasks = _plan.tasks_of(listing.entries, shuffled=order == "shuffled")
    number = _plan.samples_per_shard(tasks, packer.sample, shard_mb=options.shard_mb)
    kept = _plan.held_out(tasks, options.validation)
    validation = [task for task in tasks if task[0] in kept]
    return Job(
        out=options.out,
        shards={
            **_plan.shards([task for task in tasks if task[0] not in kept], number),
            **_plan.shards(validation, number, folder="validation/"),
        },
        packer=packer,
        settings={
            "command": "images",
            **asdict(packer.shaping),
            "order": order,
            "validation": options.validation,
            "shard_mb": options.shard_mb,
            "listing": _plan.digest(listing.classes, tasks),
        },
        policy=options.policy,
    )


def _check(options: argparse.Namespace) -> None:
    _packing.check("images", options)
    if options.size < 1 or options.validation < 0:
        raise RegscaleError(
            "images: --size, --validation",
            "are positive",
            found=f"{options.size}, {options.validation}",
            fix="The paper: --size 256 or 512.",
        )
    if not 1 <= options.quality <= 100:
        raise RegscaleError(
            "images: --quality", "is from 1 to 100", found=options.quality, fix="Try 95."
        )
