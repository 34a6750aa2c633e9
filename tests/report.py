"""Run every test but the GPU's and Slurm's and write what was seen: python -m tests.report -n 2."""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.records import Case, machine, run

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs/benchmarks/test-all.md"
PACKAGES = ("torch", "deepspeed", "transformers", "diffusers")
NUM_SLOWEST = 20


def page(cases: Sequence[Case], status: int, seconds: float) -> str:
    """Outcomes by file, everything that was not shown by name, and what took longest."""
    counts = Counter(case.outcome for case in cases)
    summary = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts.items()))
    files: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        files[case.file].append(case)
    return "\n".join(
        [
            "# Every test",
            "",
            "`make test-all` wrote this page. Tests that need a GPU (`make gpu`) and the scenarios "
            "on Slurm (`make test-slurm`) have their own.",
            "",
            f"{machine(PACKAGES)}.",
            "",
            f"{summary}: {len(cases):,} tests in {seconds / 60:.0f} minutes. "
            f"pytest's status: {status}.",
            "",
            *_others(cases),
            "## By file",
            "",
            "| file | tests | seconds |",
            "|---|---|---|",
            *(
                f"| {file.removeprefix('tests.')} | {len(own)} | {_seconds(own):.0f} |"
                for file, own in sorted(files.items())
            ),
            "",
            f"## The {NUM_SLOWEST} longest",
            "",
            "| file | fact | seconds |",
            "|---|---|---|",
            *map(_row, sorted(cases, key=lambda case: -case.seconds)[:NUM_SLOWEST]),
            "",
        ]
    )


def _others(cases: Sequence[Case]) -> list[str]:
    others = [case for case in cases if case.outcome != "shown"]
    if not others:
        return []
    rows = [f"| {case.file} | {case.fact} | {case.outcome} |" for case in others]
    return ["## Not shown", "", "| file | fact | |", "|---|---|---|", *rows, ""]


def _seconds(cases: Sequence[Case]) -> float:
    return sum(case.seconds for case in cases)


def _row(case: Case) -> str:
    return f"| {case.file.removeprefix('tests.')} | {case.fact} | {case.seconds:.0f} |"


def main(arguments: Sequence[str]) -> int:
    """pytest's status."""
    start = time.perf_counter()
    status, cases = run(
        str(FOLDER), f"--ignore={FOLDER / 'slurm'}", "-m", "not gpu", "--dist=loadfile", *arguments
    )
    PAGE.write_text(page(cases, status, time.perf_counter() - start))
    sys.stdout.write(f"{PAGE}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
