"""Train the four arms (sit, repa, token, reg) on the digits at equal steps and judge each.

    python -m benchmarks.digits_arms [--seeds 0 1 2] [--out docs/benchmarks/digits-arms.json]

1,000 digits of each run, 100 a class, with the config's guidance and without; see
benchmarks/digits_judge.py for the figures. Finished arms are kept in --out and not run again.
"""

import argparse
import json
import logging
import platform
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.digits_judge import judge
from regscale import assemble
from regscale.assemble import Loaded
from regscale.config import load
from regscale.recipe import RunConfig
from regscale.sample import sample
from regscale.training import train

CONFIG = Path("configs/digits.yaml")
ARMS = {
    "sit": ["entangle.digits_vit.weight=0", "align.digits_vit.weight=0"],
    "repa": ["entangle.digits_vit.weight=0"],
    "token": ["align.digits_vit.weight=0"],
    "reg": [],
}


def figures(loaded: Loaded, *, guided: bool) -> dict[str, float]:
    """What the judge says of 100 digits a class."""
    guidance = loaded.config.sampling.guidance
    if not guided:
        guidance = replace(guidance, scale=1.0, token_scale=None)
    texts = [str(label) for label in range(10)]
    images = sample(loaded, texts, seeds=range(100), guidance=guidance, batch_size=500)
    labels = torch.arange(10).repeat_interleave(100)
    return {name: float(value) for name, value in judge(images, labels).items()}


def run(arm: str, seed: int, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """One arm trained (or resumed) to the end, with its figures."""
    options = [f"runs={runs}", f"name={arm}-{seed}", f"seed={seed}", *ARMS[arm], *overrides]
    job = assemble.job(load(RunConfig, CONFIG, options))
    start = time.perf_counter()
    outcome = train(job)
    seconds = time.perf_counter() - start
    loaded = assemble.trained(job.folder)
    return {
        "arm": arm,
        "seed": seed,
        "steps": outcome.step,
        "training_seconds": seconds,
        "guided": figures(loaded, guided=True),
        "unguided": figures(loaded, guided=False),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: mean and range over seeds."""
    names = ("arm", "guidance", "recognised", "Frechet / real", "nearest / held out")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for arm in ARMS:
        for kind in ("unguided", "guided"):
            found = [row[kind] for row in rows if row["arm"] == arm]
            if not found:
                continue
            cells = [
                _spread([100 * f["recognised"] for f in found], "{:.1f}%"),
                _spread([f["frechet"] / f["frechet_real"] for f in found], "{:.2f}"),
                _spread([f["nearest"] / f["nearest_held_out"] for f in found], "{:.2f}"),
            ]
            lines.append(f"| {arm} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    mean = form.format(sum(values) / len(values))
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits_arms", description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/arms"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/digits-arms.json"))
    parser.add_argument("overrides", nargs="*", help="key.sub=value of configs/digits.yaml")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING)
    for seed in options.seeds:
        for arm in options.arms:
            report = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
            rows = report["runs"]
            if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                continue
            rows.append(run(arm, seed, options.runs, options.overrides))
            report |= {
                "date": date.today().isoformat(),
                "device": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
            print(f"{arm} {seed}: {rows[-1]['guided']}", flush=True)
    print(summary(json.loads(options.out.read_text())["runs"]))


if __name__ == "__main__":
    main()
