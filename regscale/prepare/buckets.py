"""Sort the pictures of shards by aspect: a folder of shards for each size, for data kind buckets.

A picture goes to the size of the nearest aspect, is resized to cover it and cut in its middle.
Captions and classes come along; encoded fields, which were of another picture, stay behind. Start
it again after a kill: what is finished stays. Under srun or torchrun each rank makes its share.
"""

import argparse
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from regscale.data import Size, index_shard, is_current, merge_folder, spelled
from regscale.data._crop import centre_crop
from regscale.data._fields import PICTURES
from regscale.data._images import Unusable, refuse_line
from regscale.data._images import opened as opened_picture
from regscale.data._index import opened
from regscale.data._tar import Read
from regscale.errors import RegscaleError
from regscale.files import replacing
from regscale.prepare._aspects import named, nearest_aspect, sizes_of_area, sizes_of_list
from regscale.prepare._packing import STATE, claim, replace
from regscale.prepare._pictures import Shaping
from regscale.prepare._process import this_process
from regscale.prepare._repack import Packed, add, damaged, samples_of
from regscale.prepare._shards import parallel, shards_of
from regscale.prepare._summary import SUMMARY, carry_notes

log = logging.getLogger(__name__)

FORMATS = ("png", "jpg", "webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="holds the shards, *.tar, with whole pictures")
    parser.add_argument("out", type=Path, help="the folder of the buckets' folders")
    parser.add_argument("--sizes", help="HEIGHTxWIDTH,HEIGHTxWIDTH,...; by default by this rule:")
    parser.add_argument("--side", type=int, default=512, help="of the square of the same area")
    parser.add_argument("--step", type=int, default=64, help="sides are multiples of it")
    parser.add_argument("--max-aspect", type=float, default=2.0, help="long by short side")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the pictures")
    parser.add_argument("--quality", type=int, default=95, help="of jpg and webp, 1 to 100")
    parser.add_argument("--workers", type=int, help="processes; all cores by default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorting:
    """What becomes of a shard. Travels to other processes."""

    out: Path
    sizes: tuple[Size, ...]
    format: str
    quality: int

    def __call__(self, shard: Path) -> None:
        """A shard for each size that its pictures come to, all of them or none."""
        counts: Counter[str] = Counter()
        with opened(shard) as (read, size), ExitStack() as stack:
            tars: dict[str, tarfile.TarFile] = {}
            for sample in samples_of(shard, read, size):
                bucket, payloads = self._sorted(shard, sample, read)
                if bucket not in tars:
                    (self.out / bucket).mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(replacing(self.out / bucket / shard.name))
                    tars[bucket] = stack.enter_context(tarfile.open(fileobj=file, mode="w"))
                for field, payload in payloads.items():
                    add(tars[bucket], f"{sample.key}.{field}", payload)
                counts[bucket] += 1
        for bucket in counts:
            index_shard(self.out / bucket / shard.name)
        replace(_note(self.out, shard), json.dumps(counts))

    def _sorted(self, shard: Path, sample: Packed, read: Read) -> tuple[str, dict[str, bytes]]:
        """The bucket of a sample, and what it holds there."""
        picture = sample.picture
        if picture is None:
            begin = min(member.head for member in sample.members.values())
            raise damaged(shard, begin, sample.key, "has no picture")
        try:
            whole, _ = opened_picture(read(picture.start, picture.size))
            refuse_line(whole)
        except Unusable as error:
            raise damaged(shard, picture.start, sample.key, f"has {error}") from error
        size = nearest_aspect((whole.height, whole.width), self.sizes)
        pixels = centre_crop(whole, size).permute(1, 2, 0).contiguous().numpy()
        shaping = Shaping(size=0, crop="none", format=self.format, quality=self.quality)
        others = {
            field: read(member.start, member.size)
            for field, member in sample.members.items()
            if field not in PICTURES and not field.endswith(".npy")
        }
        return spelled(size), {self.format: shaping.encoded(Image.fromarray(pixels)), **others}


def run(options: argparse.Namespace) -> None:
    """Sort this rank's share of the shards, and join the indexes when none is left."""
    sorting = Sorting(
        out=options.out,
        sizes=tuple(_sizes(options)),
        format=options.format,
        quality=options.quality,
    )
    shards = shards_of(options.folder)
    settings = {
        "command": "buckets",
        "sizes": named(sorting.sizes),
        "format": options.format,
        "quality": options.quality,
    }
    claim(options.out, settings, {shard.name: shard.stat().st_size for shard in shards})
    log.info("buckets of %s", named(sorting.sizes))
    process = this_process()
    mine = shards[process.rank :: process.world_size]
    left = [shard for shard in mine if not _finished(options.out, shard)]
    parallel(sorting, left, workers=options.workers, what="sorting")
    waiting = sum(not _finished(options.out, shard) for shard in shards)
    if waiting:
        log.info("%s of %s shards are left to other processes", f"{waiting:,}", f"{len(shards):,}")
        return
    _join(options.folder, shards, sorting, settings)


def _sizes(options: argparse.Namespace) -> list[Size]:
    if not 1 <= options.quality <= 100:
        raise RegscaleError(
            "buckets: --quality", "is from 1 to 100", found=options.quality, fix="Try 95."
        )
    if options.sizes:
        return sizes_of_list(options.sizes)
    if not (0 < options.step <= options.side and options.max_aspect >= 1):
        raise RegscaleError(
            "buckets: --side, --step, --max-aspect",
            "are pixels, with a step of the side at most, and 1 or more",
            found=f"{options.side}, {options.step}, {options.max_aspect:g}",
            fix="Try --side 512 --step 64 --max-aspect 2.",
        )
    return sizes_of_area(options.side, step=options.step, max_aspect=options.max_aspect)


def _note(out: Path, shard: Path) -> Path:
    return out / STATE / f"{shard.name}.json"


def _counts(out: Path, shard: Path) -> dict[str, int]:
    """Pictures of a finished shard by bucket."""
    counts: dict[str, int] = json.loads(_note(out, shard).read_text())
    return counts


def _finished(out: Path, shard: Path) -> bool:
    return _note(out, shard).exists() and all(
        is_current(out / bucket / shard.name) for bucket in _counts(out, shard)
    )


def _join(
    source: Path, shards: Sequence[Path], sorting: Sorting, settings: Mapping[str, object]
) -> None:
    """An index and a summary of each bucket; those without pictures are told."""
    counts = {shard.name: _counts(sorting.out, shard) for shard in shards}
    total = sum(sum(each.values()) for each in counts.values())
    for size in map(spelled, sorting.sizes):
        made = {name: each[size] for name, each in counts.items() if size in each}
        number, folder = sum(made.values()), sorting.out / size
        if not made:
            log.warning("%s: no picture is nearest to it; leave it out of data.sources", size)
            continue
        about = {"settings": {**settings, "size": size}, "samples": number, "shards": made}
        carry_notes(source, folder)
        replace(folder / SUMMARY, json.dumps({"fields": {}, **about}, indent=1) + "\n")
        merge_folder(folder, [folder / name for name in made])
        text = "%s: %s samples, %.3g%%, in %s shards"
        log.info(text, folder, f"{number:,}", 100 * number / total, f"{len(made):,}")
