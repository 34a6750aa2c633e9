"""Encode the pictures of shards: moments of the autoencoder and features of targets beside them.

Other shards are written, whole or not at all; those that were made from these very pictures are
passed over, so the command goes on where it was stopped. Start it on any number of processes, by
torchrun or srun: each takes its part of the shards, and the last one joins the indexes.
"""

import argparse
import json
import logging
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from regscale.cluster import join
from regscale.config import load
from regscale.data import index_path, index_shard, is_current, merge_folder, size_of
from regscale.data._index import opened, quick_hash
from regscale.data._merged import Index
from regscale.data._merged import read as read_index
from regscale.errors import RegscaleError
from regscale.files import replacing
from regscale.log import set_up
from regscale.prepare import _encoders
from regscale.prepare._encoders import DTYPES, Encoders, npy
from regscale.prepare._packing import STATE, replace
from regscale.prepare._process import this_process
from regscale.prepare._repack import add, decoded, samples_of
from regscale.prepare._shards import shards_of
from regscale.prepare._summary import SETTINGS, carry, summary_of
from regscale.progress import progress
from regscale.recipe import RunConfig

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a file of configs/: its encoders and image size")
    parser.add_argument("folder", type=Path, help="holds the shards, *.tar, with pictures")
    parser.add_argument("overrides", nargs="*", help="key.sub=value; autoencoder.dtype=bf16 ...")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the other shards")
    parser.add_argument("--fields", help="moments,dinov2,...; by default all that the run uses")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp16", help="of what is stored")
    parser.add_argument("--size", help="HEIGHTxWIDTH of the pictures; by default that of the data")
    parser.add_argument("--flip", action="store_true", help="a second row for the mirror image")
    parser.add_argument("--patches", action="store_true", help="also the patches of targets")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures of one model call")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that decode pictures")


def run(options: argparse.Namespace) -> None:
    """Encode this process's part of the shards, and join the indexes when none is left."""
    process = this_process()
    if process.rank:
        set_up(rank=process.rank)
    _check(options)
    config: RunConfig = load(RunConfig, options.config, options.overrides)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is fp32
    encoders = _encoders.build(
        config,
        options.fields.split(",") if options.fields else None,
        dtype=options.dtype,
        flip=options.flip,
        patches=options.patches,
        device=_device(config.device, process.local_rank),
        image_size=size_of(options.size) if options.size else None,
    )
    shards = shards_of(options.folder)
    summary_of(options.folder)  # refused before the work, not behind it
    _announce(encoders, shards, options.out)
    identities = _settle(encoders, options.out)
    left = _left(shards, options.out)
    mine = [shard for shard in shards[process.rank :: process.world_size] if shard in left]
    with (
        ThreadPoolExecutor(options.num_workers) as pool,
        progress(_count(mine), what="encoding", unit="images") as advance,
    ):
        for shard in mine:
            encode_shard(
                shard,
                options.out / shard.name,
                encoders,
                identities=identities,
                batch_size=options.batch_size,
                pool=pool,
                progress=advance,
            )
    _join(shards, options.out)


def encode_shard(
    shard: Path,
    out: Path,
    encoders: Encoders,
    *,
    identities: Mapping[str, str],
    batch_size: int,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], object],
) -> None:
    """Write and index a shard with the encoders' fields; each model is called ceil(n / batch_size)
    times for its n samples."""
    known, source = _index_of(shard), _source(shard)
    with opened(shard) as (read, size):
        samples = samples_of(shard, read, size)
        batches = decoded(
            shard,
            read,
            samples,
            image_size=encoders.image_size,
            batch_size=batch_size,
            pool=pool,
        )
        with replacing(out) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for group, images in batches:
                made = encoders(images)
                for row, sample in enumerate(group):
                    for field, member in sample.members.items():
                        if field not in made:
                            add(tar, member.name, read(member.start, member.size))
                    for field, rows in made.items():
                        add(tar, f"{sample.key}.{field}", npy(rows[row]))
                progress(len(group))
    index_shard(out, identities={**(known.identities if known else {}), **identities})
    replace(_note(out), json.dumps(source))


def _left(shards: Sequence[Path], out: Path) -> list[Path]:
    """The shards whose pictures are not encoded."""
    left = [shard for shard in shards if not _is_encoded(shard, out / shard.name)]
    stale = [shard.name for shard in left if is_current(out / shard.name)]
    if stale:
        text = "%s: %s shards may be of other pictures and are encoded again, the first %s"
        log.info(text, out, f"{len(stale):,}", stale[0])
    return left


def _is_encoded(shard: Path, made: Path) -> bool:
    note = _note(made)
    if not (is_current(made) and note.exists()):
        return False
    before, now = json.loads(note.read_text()), _source(shard)
    return all(before[what] == now[what] for what in now if before[what] and now[what])


def _source(shard: Path) -> dict[str, str]:
    """What tells a shard from others of its name: its size and both ends, and all members where
    it has an index."""
    with opened(shard) as (read, size):
        quick = quick_hash(read, size)
    known = _index_of(shard)
    return {"quick": quick, "digest": known.shards[0].digest if known else ""}


def _note(made: Path) -> Path:
    return made.parent / STATE / f"{made.name}.json"


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        wanted = f"cuda:{local_rank % torch.cuda.device_count()}"  # a task may see its own alone
    return join(wanted).device


def _announce(encoders: Encoders, shards: Sequence[Path], out: Path) -> None:
    """The disk that will be taken, before anything is computed."""
    sizes = encoders.bytes_a_sample
    fields = ", ".join(f"{field} {size:,}" for field, size in sizes.items())
    log.info("each sample grows by %s bytes: %s", f"{sum(sizes.values()):,}", fields)
    copied = sum(shard.stat().st_size for shard in shards)
    count = _count(shards)
    if count is None:
        log.info("the number of samples is not known: %s has no index", shards[0].parent)
        return
    added = count * sum(sizes.values())
    place = next(each for each in (out.absolute(), *out.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(place).free
    log.info(
        "%s samples: %.3g GB more, with the %.3g GB that are copied %.3g GB; %.3g GB are free",
        f"{count:,}",
        *(size / 1e9 for size in (added, copied, added + copied, free)),
    )


def _settle(encoders: Encoders, out: Path) -> dict[str, str]:
    """Note how the folder's shards are encoded, or refuse to mix; returns the identities."""
    identities = encoders.identities
    settings: dict[str, Any] = {
        "image_size": list(encoders.image_size),
        "dtype": encoders.dtype,
        "flip": encoders.flip,
        "fields": identities,
    }
    path = out / SETTINGS
    if path.exists():
        before = json.loads(path.read_text())
        for key, value in settings.items():
            if before.get(key) != value:
                raise RegscaleError(
                    out,
                    f"holds shards that were encoded with another {key}",
                    found=f"{before.get(key)}, asked for {value}",
                    fix="Choose another --out, or the settings of before.",
                )
        return identities
    if out.is_dir() and any(out.glob("*.tar")):
        raise RegscaleError(
            out,
            f"holds shards, but no {SETTINGS} that says how they were encoded",
            found=min(each.name for each in out.glob("*.tar")),
            fix="Choose another --out.",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegscaleError(
            out, "cannot be made", found=error.strerror or error, fix="Choose another --out."
        ) from error
    with replacing(path) as file:
        file.write(json.dumps(settings, indent=1).encode())
    return identities


def _join(shards: Sequence[Path], out: Path) -> None:
    waiting = sum(not _is_encoded(shard, out / shard.name) for shard in shards)
    if waiting:
        log.info("%s of %s shards are left to other processes", f"{waiting:,}", f"{len(shards):,}")
        return
    index = merge_folder(out, [out / shard.name for shard in shards])
    carry(shards[0].parent, out, index.identities)
    log.info("%s: %s samples; fields %s", out, f"{len(index.rows):,}", ", ".join(index.fields))


def _count(shards: Sequence[Path]) -> int | None:
    """The samples of shards; None where one has no index."""
    indexes = [_index_of(shard) for shard in shards]
    counts = [len(index.rows) for index in indexes if index is not None]
    return sum(counts) if len(counts) == len(shards) else None


def _index_of(shard: Path) -> Index | None:
    return read_index(index_path(shard)) if is_current(shard) else None


def _check(options: argparse.Namespace) -> None:
    if options.batch_size < 1 or options.num_workers < 1:
        raise RegscaleError(
            "encode: --batch-size, --num-workers",
            "are positive",
            found=f"{options.batch_size}, {options.num_workers}",
            fix="Give 1 or more.",
        )
    if options.size and size_of(options.size) is None:
        raise RegscaleError(
            "encode: --size", "is HEIGHTxWIDTH in pixels", found=options.size, fix="Try 576x448."
        )
    if options.out.resolve() == options.folder.resolve():
        raise RegscaleError(
            f"encode: --out {options.out}",
            "is another folder than that of the shards, which are never changed",
            found="the same folder",
            fix="Name a new one.",
        )
