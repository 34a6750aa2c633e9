"""Run every scenario and write what was seen, with its date: python -m tests.slurm.report."""

import os
import platform
import re
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.slurm.lab import CONTROL, Lab, missing

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs/benchmarks/slurm.md"


def lab_seconds() -> tuple[float, float, str]:
    """To bring three nodes up, to take them down, and Slurm's version."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        start = time.perf_counter()
        with Lab(folder, num_nodes=3) as lab:
            up = time.perf_counter() - start
            version = lab.on(CONTROL, "sinfo", "--version").strip()
            start = time.perf_counter()
        return up, time.perf_counter() - start, version


def page(results: Path, status: int) -> str:
    """The page from pytest's own record."""
    up, down, version = lab_seconds()
    load = os.getloadavg()
    lines = [
        "# The launchers on a real Slurm",
        "",
        "`make test-slurm` wrote this page: real munged, slurmctld and slurmd, three nodes on one "
        "machine, the launchers as shipped.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {version}, {os.cpu_count()} cores for three nodes of two "
        f"tasks, load {load[2]:.1f} over 15 minutes, Python {platform.python_version()}, "
        f"torch {torch.__version__}.",
        "",
        f"The lab comes up in {up:.1f} s and down in {down:.1f} s. pytest's status: {status}.",
        "",
        "| file | fact | seconds | |",
        "|---|---|---|---|",
    ]
    total = 0.0
    for case in ElementTree.parse(results).iter("testcase"):
        failed = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        fact = re.sub(r"^test ", "", case.get("name", "").replace("_", " "))
        seconds = float(case.get("time", "0"))
        total += seconds
        file = case.get("classname", "").rpartition(".")[2]
        lines.append(f"| {file} | {fact} | {seconds:.1f} | {', '.join(failed) or 'shown'} |")
    lines += ["", f"{total:.0f} s in all, the lab and what tests share included.", ""]
    return "\n".join(lines)


def main() -> int:
    """pytest's status."""
    reason = missing()
    if reason:
        sys.stderr.write(f"error: {reason}\n")
        return 2
    with tempfile.TemporaryDirectory() as name:
        results = Path(name) / "results.xml"
        status = int(pytest.main([str(FOLDER), f"--junit-xml={results}", "-v"]))
        PAGE.write_text(page(results, status))
    sys.stdout.write(f"{PAGE}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
