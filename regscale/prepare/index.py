"""Index a folder of shards: places, lengths and checksums, so that a run reads any sample at once.

Shards whose index is current are passed over, so the command goes on where it was stopped. Under
srun or torchrun each process takes its part, and the last one joins the indexes.
"""

import argparse
import logging
from pathlib import Path

from regscale.data import Finding, index_path, index_shard, is_current, merge_folder
from regscale.errors import RegscaleError
from regscale.prepare._shards import mine, parallel, report, shards_of

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="holds the shards, *.tar")
    parser.add_argument("--workers", type=int, help="processes; all cores by default")
    parser.add_argument("--force", action="store_true", help="also shards whose index is current")


def run(options: argparse.Namespace) -> None:
    """Index the shards, then join their indexes; damage is told at the end."""
    shards = shards_of(options.folder)
    if options.force:
        for shard in mine(shards):
            index_path(shard).unlink(missing_ok=True)
    parallel(_index, mine(shards), workers=options.workers, what="indexing")
    waiting = sum(not is_current(shard) for shard in shards)
    if waiting:
        log.info("%s of %s shards are left to other processes", f"{waiting:,}", f"{len(shards):,}")
        return
    index = merge_folder(options.folder, shards)
    log.info(
        "%s: %s samples in %s shards; fields %s",
        index.where,
        f"{len(index.rows):,}",
        f"{len(shards):,}",
        ", ".join(f"{f} ({n:,})" for f, n in zip(index.fields, index.counts, strict=True)),
    )
    if index.damage:
        report(
            Finding(str(options.folder / shard), damage.byte, damage.sample, damage.what)
            for shard, damage in index.damage
        )
        raise RegscaleError(
            options.folder,
            "holds damaged shards",
            found=f"{len(index.damage):,} damaged places, listed above",
            fix="Restore the shards and index again, or train with data.policy=skip.",
        )


def _index(shard: Path) -> None:
    if not is_current(shard):
        index_shard(shard)
