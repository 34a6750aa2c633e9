"""Read every byte of a folder of shards against its index, decode every field, name all damage.

Under srun or torchrun each process reads its part and tells the damage there.
"""

import argparse
import logging
from pathlib import Path

from regscale.data import Finding, verify_shard
from regscale.errors import RegscaleError
from regscale.prepare._shards import mine, parallel, report, shards_of

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="holds the shards and their indexes")
    parser.add_argument("--workers", type=int, help="processes; all cores by default")


def run(options: argparse.Namespace) -> None:
    """One line for each damaged place: shard, byte, sample, what."""
    shards = mine(shards_of(options.folder))
    found = parallel(_verify, shards, workers=options.workers, what="verifying")
    damage = [finding for _, findings in found for finding in findings]
    samples = sum(count for count, _ in found)
    log.info("read %s samples in %s shards", f"{samples:,}", f"{len(shards):,}")
    if damage:
        report(damage)
        raise RegscaleError(
            options.folder,
            "is damaged",
            found=f"{len(damage):,} damaged places, listed above",
            fix="Restore these shards, or index them as they are and set data.policy=skip.",
        )


def _verify(shard: Path) -> tuple[int, list[Finding]]:
    return verify_shard(shard)
