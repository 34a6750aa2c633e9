"""Train a run: python -m regscale.train CONFIG [key.sub=value ...] [--dry-run]."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from regscale import assemble
from regscale.cluster import place
from regscale.config import load, to_values, to_yaml
from regscale.describe import dry_run
from regscale.log import run_command
from regscale.recipe import RunConfig
from regscale.training import StopFlag, train
from regscale.training.watchdog import Watchdog

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """The same command starts a run and resumes it from its newest intact checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m regscale.train", description=main.__doc__)
    parser.add_argument("config", type=Path, help="a file of configs/")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument(
        "--dry-run", action="store_true", help="print config, parameters and FLOPs, then stop"
    )
    options = parser.parse_intermixed_args(arguments)
    config = load(RunConfig, options.config, options.overrides)
    if options.dry_run:
        sys.stdout.write(to_yaml(to_values(config)))
        sys.stdout.writelines(f"# {line}\n" for line in dry_run(config))
        return
    start = time.perf_counter()
    file = os.environ.get("REGSCALE_STOP_FILE")
    folder, rank = Path(config.runs) / config.name, place().rank
    seconds = config.training.start_seconds
    with (
        StopFlag(Path(file) if file else None) as stop,
        Watchdog(seconds=seconds, folder=folder, rank=rank) as dog,
    ):
        job = assemble.job(config)
        outcome = train(job, stop, dog)
    seconds = time.perf_counter() - start
    log.info(
        "%s at step %s after %.0f s: %s",
        outcome.reason, f"{outcome.step:,}", seconds, job.folder,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
