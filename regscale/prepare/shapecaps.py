"""Write scenes of ShapeCaps to WebDataset shards: png, and json with all captions.

A sample's json holds `captions` and `caption_sources`, as `captions` writes them, and its kind.
Read with the kind `shards`, such a folder gives what the kind `shapecaps` makes.
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from regscale.config import Invalid
from regscale.data._scenes import ALL_KINDS, KINDS, SOURCES
from regscale.data.shapecaps import Config, ShapeCaps, pictures
from regscale.errors import RegscaleError
from regscale.prepare import _packing, _plan
from regscale.prepare._packing import Job, Task, pack
from regscale.prepare._summary import finish
from regscale.prepare._tally import Removed, Sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--export", type=Path, required=True, metavar="DIR", help="the folder of the shards"
    )
    parser.add_argument("--num-samples", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side: 32, or doubled")
    parser.add_argument(
        "--split", choices=("train", "validation", "held_out"), default="train",
        help="held_out: captions of which no other split shows the content",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=ALL_KINDS, metavar="KIND",
        help=f"of {', '.join(ALL_KINDS)}; all but the last by default",
    )  # fmt: skip
    _packing.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Make the shards; the rank that finishes last joins the indexes."""
    _packing.check("shapecaps", options)
    config = _config(options)
    packer = Scenes(config)
    tasks: list[Task] = [[index] for index in range(config.num_samples)]
    per_shard = _plan.samples_per_shard(tasks, packer.sample, shard_mb=options.shard_mb)
    job = Job(
        out=options.export,
        shards=_plan.shards(tasks, per_shard),
        packer=packer,
        settings={
            "command": "shapecaps",
            **asdict(config),
            "shard_mb": options.shard_mb,
            "content": ShapeCaps(config).fingerprint,
        },
        policy=options.policy,
    )
    if pack(job, workers=options.workers):
        finish(job)


def _config(options: argparse.Namespace) -> Config:
    try:
        return Config(
            num_samples=options.num_samples,
            size=options.size,
            split=options.split,
            seed=options.seed,
            kinds=tuple(options.kinds),
        )
    except Invalid as error:
        flag = f"shapecaps: --{error.key.replace('_', '-')}"
        raise RegscaleError(flag, error.what, found=error.found, fix=error.fix) from error


@dataclass(frozen=True, slots=True)
class Scenes:
    """Packs samples by their numbers."""

    config: Config

    def samples(self, tasks: Sequence[Task]) -> Iterator[Sample | Removed]:
        return map(self.sample, tasks)

    def sample(self, task: Task) -> Sample:
        source = ShapeCaps(self.config)
        (index,) = task
        scene = source.scene(index)
        (pixels,) = pictures([scene], self.config.size)
        file = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
        about = {
            "captions": scene.captions,
            "caption_sources": SOURCES,
            "kind": scene.prompt.kind,
        }
        told = json.dumps(about, sort_keys=True).encode()
        return source.key(index), {"png": file.getvalue(), "json": told}
