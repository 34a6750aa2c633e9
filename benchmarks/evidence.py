"""Does the entangled token help under a prompt? Four arms and one-change ablations on ShapeCaps.

    python -m benchmarks.evidence run [--parallel 2 --threads 1] [--part arms] [key.sub=value ...]
    python -m benchmarks.evidence report

`run` trains and evaluates what is missing below --runs, each run by `regscale.train`: stop it as
you like, the same command goes on. `report` writes tables and plots of finished runs into the page.
What is compared, and what it costs: docs/entangled-text.md.
"""

import argparse
import logging
import signal
from functools import partial
from pathlib import Path

from benchmarks._evidence_figures import Result, best, read
from benchmarks._evidence_report import write
from benchmarks._evidence_run import Launch, Launcher, make
from benchmarks._evidence_study import Study, read_study
from regscale.errors import RegscaleError
from regscale.log import run_command

log = logging.getLogger(__name__)


def main(arguments: list[str], launch: Launch | None = None) -> None:
    """`launch` takes the place of processes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate what is missing")
    report = commands.add_parser("report", help="write tables and plots")
    for each in (run, report):
        each.add_argument("--runs", type=Path, default=Path("runs/evidence"))
        each.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--part", choices=["arms", "ablations", "all"], default="all")
    run.add_argument("--config", type=Path, default=Path("configs/shapecaps.yaml"))
    run.add_argument("--num-prompts", type=int, default=400, help="of each kind and split")
    run.add_argument("--parallel", type=int, default=1, help="runs at a time")
    run.add_argument("--threads", type=int, help="of each run; else as many as torch takes")
    run.add_argument("overrides", nargs="*", help="key.sub=value, of all runs")
    report.add_argument("--page", type=Path, default=Path("docs/entangled-text.md"))
    report.add_argument("--images", type=Path, default=Path("docs/images"))
    options = parser.parse_args(arguments)
    if options.command == "run":
        _run(options, launch or Launcher(options.threads))
    else:
        missing = write(read_study(options.runs, options.seeds), options.page, options.images)
        for line in missing:
            log.info("left out: %s", line)
        log.info("%s", options.page)


def _run(options: argparse.Namespace, launch: Launch) -> None:
    study = Study(
        runs=options.runs,
        config=options.config,
        overrides=tuple(options.overrides),
        num_prompts=options.num_prompts,
        seeds=tuple(options.seeds),
    )
    study.open()
    made = partial(
        make, study, launch=launch, parallel=options.parallel, num_threads=options.threads
    )
    failures = []
    if options.part in ("arms", "all"):
        failures = made(study.arms())
    if options.part in ("ablations", "all"):
        found = [read(study, run) for run in study.arms()]
        base = best([each for each in found if isinstance(each, Result)], study.seeds)
        if base is None:
            raise RegscaleError(
                study.runs,
                "has no best arm for the ablations: they follow all seeds of the arms with a token",
                found="; ".join([*failures, *(each for each in found if isinstance(each, str))]),
                fix="Run the arms to their end: --part arms.",
            )
        log.info("ablations of %s", base)
        failures += made(study.ablations(base))
    if failures:
        raise RegscaleError(
            study.runs, f"{len(failures)} runs failed", found="; ".join(failures), fix="See above."
        )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(main)
