"""The step benchmark at SiT-B/2 and XL/2 on this machine's GPU, in bf16, eager and compiled, every
engine at one rank, the backends of attention side by side, and how long a checkpoint in the
background holds training.

    python -m benchmarks.gpu [--folder docs/benchmarks]

Writes step-, attention- and checkpoint-DEVICE-DATE.json there, prints every rate over the plain
loop's and every backend's over sdpa's. Each case is a process of its own, so that memory and
compiled code of one do not reach the next. Ends with status 1 where a training step is below the
bar on `single`.
"""

import argparse
import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from regscale.errors import RegscaleError
from regscale.log import run_command

CASES = (("B", 128), ("XL", 32))  # XL: the published 256 on eight devices
ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")  # at SiT-B/2, compiled, beside `single`
BAR = 0.97


def commands(path: Path) -> list[list[str]]:
    """The arguments of `benchmarks.step` for each case."""
    shared = ["--precision", "bf16", "--steps", "10", "--repeats", "7", "--out", str(path)]
    cases = [
        ["--size", size, "--batch-size", str(batch_size), *compiled]
        for size, batch_size in CASES
        for compiled in ([], ["--compile"])
    ]
    size, batch_size = CASES[0]
    one = ["--size", size, "--batch-size", str(batch_size), "--compile", "--engine"]
    return [[*case, *shared] for case in (*cases, *([*one, engine] for engine in ENGINES))]


def lines(report: dict[str, Any]) -> list[str]:
    """A line for each case: rates, shares of the peak, memory."""
    made = []
    for case in report["cases"]:
        settings, training, sampling = case["settings"], case["training"], case["sampling"]
        own, over = training["regscale"], training["rate_over_plain"]["median"]
        below = _barred(case) and over < BAR
        drawn = f"{sampling['rate_over_plain']['median']:.3f} of plain" if sampling else "not timed"
        made.append(
            f"{settings['engine']}  SiT-{settings['size']}/{settings['patch_size']}"
            f"  batch {settings['batch_size']}"
            f"  {settings['precision']}  {'compiled' if settings['compile'] else 'eager'}"
            f"  {own['images_per_second']:,.0f} img/s  mfu {own['mfu'] or float('nan'):.1%}"
            f"  mem {own['peak_memory_gib'] or float('nan'):.1f} GiB"
            f"  {over:.3f} of plain{f', BELOW {BAR}' if below else ''}"
            f"  {training['rate_over_published_habits']['median']:.2f} of the published habits"
            f"  sampling {drawn}"
        )
    return made


def below_the_bar(report: dict[str, Any]) -> bool:
    barred = filter(_barred, report["cases"])
    return any(case["training"]["rate_over_plain"]["median"] < BAR for case in barred)


def _barred(case: dict[str, Any]) -> bool:
    """Only `single` does the plain loop's work and no more."""
    return bool(case["settings"]["engine"] == "single")


def run(module: str, arguments: list[str], path: Path) -> None:
    """A case in a process of its own."""
    print("python -m", module, *arguments, flush=True)
    if subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode:
        raise RegscaleError(
            "benchmarks.gpu",
            "a case ended with an error",
            found="the message above",
            fix=f"Run it alone; earlier cases are in {path}.",
        )


def main(arguments: list[str]) -> None:
    """All cases, or one sentence where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("docs/benchmarks"))
    folder = parser.parse_args(arguments).folder
    if not torch.cuda.is_available():
        raise RegscaleError(
            "benchmarks.gpu",
            "needs a CUDA device",
            found=f"none, with torch {torch.__version__}",
            fix="Use a machine with an NVIDIA GPU and a CUDA build of torch; "
            "python -m benchmarks.step runs anywhere.",
        )
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    ending = f"{device}-{date.today().isoformat()}.json"
    path = folder / f"step-{ending}"
    for command in commands(path):
        run("benchmarks.step", command, path)
    run("benchmarks.attention", ["--out", str(folder / f"attention-{ending}")], path)
    stall = ["stall", "--device", "cuda", "--out", str(folder / f"checkpoint-{ending}")]
    run("benchmarks.checkpoint_plan", stall, path)
    report = json.loads(path.read_text())
    print(*lines(report), f"written: {path}", sep="\n")
    sys.exit(1 if below_the_bar(report) else 0)


if __name__ == "__main__":
    run_command(main)
