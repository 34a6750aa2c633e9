"""Run every scenario and write what was seen, with its date: python -m tests.slurm.report."""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.records import Case, machine, run
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


def page(cases: Sequence[Case], status: int) -> str:
    """The page: the machine, the lab, every scenario."""
    up, down, version = lab_seconds()
    total = sum(case.seconds for case in cases)
    return "\n".join(
        [
            "# The launchers on a real Slurm",
            "",
            "`make test-slurm` wrote this page: real munged, slurmctld and slurmd, three nodes of "
            "two tasks on one machine, the launchers as shipped.",
            "",
            f"{machine()}, {version}.",
            "",
            f"The lab comes up in {up:.1f} s and down in {down:.1f} s. pytest's status: {status}.",
            "",
            "| file | fact | seconds | |",
            "|---|---|---|---|",
            *(
                f"| {file.rpartition('.')[2]} | {fact} | {seconds:.1f} | {outcome} |"
                for file, fact, seconds, outcome in cases
            ),
            "",
            f"{total:.0f} s in all, the lab and what tests share included.",
            "",
        ]
    )


def main() -> int:
    """pytest's status."""
    reason = missing()
    if reason:
        sys.stderr.write(f"error: {reason}\n")
        return 2
    status, cases = run(str(FOLDER), "-v")
    PAGE.write_text(page(cases, status))
    sys.stdout.write(f"{PAGE}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
