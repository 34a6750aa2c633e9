"""Rank evaluations, if everything but the checkpoint is alike in them.

Figures that differ in any other field of their provenance are refused, naming the field.
"""

import argparse
import logging
from pathlib import Path

from regscale.evaluation.compare import compare
from regscale.evaluation.report import read

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("evaluations", type=Path, nargs="+", help="folders or files of evaluation.json")
    add("--despite", nargs="+", default=[], metavar="FIELD", help="fields that may differ")
    add("--anyway", action="store_true", help="rank whatever differs, and tell it")


def run(options: argparse.Namespace) -> None:
    """A table of each figure that all of them have."""
    found = [read(path) for path in options.evaluations]
    log.info("%s", compare(found, despite=options.despite, anyway=options.anyway))
