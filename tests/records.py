"""What pytest saw, from its own record, and on which machine: for the pages in docs/benchmarks."""

import os
import platform
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest


class Case(NamedTuple):
    """One test."""

    file: str  # as a module: tests.data.test_tar
    fact: str
    seconds: float
    outcome: str  # shown, skipped, failure or error


def run(*arguments: str) -> tuple[int, list[Case]]:
    """pytest's status, and every test that it ran."""
    with tempfile.TemporaryDirectory() as name:
        results = Path(name) / "results.xml"
        status = int(pytest.main([*arguments, f"--junit-xml={results}"]))
        return status, [_case(each) for each in ElementTree.parse(results).iter("testcase")]


def _case(found: ElementTree.Element) -> Case:
    outcomes = [child.tag for child in found if child.tag in ("failure", "error", "skipped")]
    return Case(
        file=found.get("classname", ""),
        fact=re.sub(r"^test ", "", found.get("name", "").replace("_", " ")),
        seconds=float(found.get("time", "0")),
        outcome=", ".join(outcomes) or "shown",
    )


def machine(packages: Sequence[str] = ("torch",)) -> str:
    """The day, the machine and what it was busy with."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f} over "
        f"15 minutes, Python {platform.python_version()}, {versions}"
    )
