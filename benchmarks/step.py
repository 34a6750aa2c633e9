"""Time a training step and a guided sampling step beside a plain loop of the same model.

    python -m benchmarks.step --size B --batch-size 32 --precision bf16 --compile --out FILE.json

All loops train the same SiT with REG's objective on the same tensors on the device, turn by turn
in one run, so that only ratios within a run are compared:

- `regscale`: what training runs, `training.loop.update` on `single` or on `--engine` at one rank;
- `plain`: 40 lines with clipping, fused AdamW and a foreach average, nothing else, in the same
  precision (the model's own policy) and compiled alike; the bar is 0.97 of its rate;
- `published_habits`: autocast, unfused AdamW, a Python loop over samples and over parameters and
  five numbers fetched a step, eager; reported, not a bar.

`mfu` is 3 x the forward's FLOPs (sampling: 2 x, for guidance) in the time over the device's peak.
FILE is written, or gets one case more if it is of the same machine and versions.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks._step_case import Case, tensors
from benchmarks._step_loops import ENGINES, Loop, build
from benchmarks._step_sampling import (
    device_noise,
    regscale_sampler,
    sample_by_regscale,
    sample_plainly,
)
from benchmarks._step_timing import CLOCKS, Memory, Timing, interleave, machine, peak_tflops, ratio
from regscale.cluster import join
from regscale.errors import RegscaleError
from regscale.log import run_command
from regscale.models.sit import SIZES, SiT

LOOPS = ("published_habits", "regscale", "plain")  # the last two are neighbours in every turn
WARM_UP = 3
NUM_BATCHES = 2
SAMPLING_STEPS = 250


def measure(
    case: Case, timing: Timing, *, device: torch.device, peak: float | None
) -> dict[str, Any]:
    """The figures of one case: both kinds of step, as JSON values."""
    peak = peak_tflops(device, case.precision) if peak is None else peak
    work = _Work(case.flops(), case.batch_size, peak)
    training, model = _training(case, timing, device, work)
    torch.compiler.reset()  # sampling compiles for its own shapes, as in a run of its own
    whole = case.engine == "single"  # samplers hold the model as it is
    return {
        "settings": case.settings(),
        "timing": asdict(timing),
        "forward_gflop": round(work.flops / 1e9, 3),
        "peak_tflops": peak,
        "training": training,
        "sampling": _sampling(case, model, timing, device, work) if whole else None,
    }


class _Work:
    """From seconds a step to the figures of a report."""

    def __init__(self, flops: float, images: int, peak: float | None) -> None:
        self.flops, self._images, self._peak = flops, images, peak

    def figures(self, seconds: list[float], *, forwards: int) -> dict[str, object]:
        """Of the median step, which costs `forwards` forwards of each image."""
        step = median(seconds)
        rate = forwards * self.flops * self._images / step
        mfu = None if self._peak is None else round(rate / (self._peak * 1e12), 4)
        images = self._images / step
        return {"seconds": round(step, 6), "images_per_second": round(images, 3), "mfu": mfu}


def _training(
    case: Case, timing: Timing, device: torch.device, work: _Work
) -> tuple[dict[str, Any], SiT]:
    """The three loops, and the model that regscale's has trained."""
    batches = [case.batch(seed, device) for seed in range(NUM_BATCHES)]
    given = [tensors(batch) for batch in batches]

    def several(loop: Loop, count: int) -> Callable[[], None]:
        def run() -> None:
            for i in range(count):
                loop.step(batches[i % NUM_BATCHES], given[i % NUM_BATCHES])

        return run

    loops: dict[str, Loop] = {}
    start: dict[str, Tensor] = {}
    memory: dict[str, Memory] = {}
    for name in sorted(LOOPS, key=lambda name: name != "regscale"):  # it makes the first weights
        memory[name] = Memory(device)
        loops[name] = build(name, case, start, device)
        start = start or loops[name].weights()
        several(loops[name], WARM_UP)()
        memory[name].built()
    blocks = {name: several(loops[name], timing.steps) for name in LOOPS}
    seconds = interleave(blocks, timing, device=device)
    report: dict[str, Any] = {
        name: work.figures([s / timing.steps for s in seconds[name]], forwards=3)
        | {"peak_memory_gib": memory[name].peak_gib(several(loops[name], 1))}
        | {"loss": loops[name].loss()}
        for name in LOOPS
    }
    for name in ("plain", "published_habits"):
        report[f"rate_over_{name}"] = ratio(seconds, of="regscale", to=name)
    return report, loops["regscale"].model


def _sampling(
    case: Case, model: SiT, timing: Timing, device: torch.device, work: _Work
) -> dict[str, Any]:
    """Both samplers with one model; a turn is a whole picture in that number of steps."""
    steps = max(timing.steps, 2)
    model.eval().requires_grad_(requires_grad=False)
    model.stop_aligning(0)
    labels = torch.arange(case.batch_size, device=device)
    sampler, noise = regscale_sampler(model, steps, device), device_noise(case.batch_size, device)
    blocks: dict[str, Callable[[], object]] = {
        "regscale": lambda: sample_by_regscale(sampler, labels),
        "plain": lambda: sample_plainly(model, labels, noise, num_steps=steps),
    }
    for block in blocks.values():
        block()
    seconds = interleave(blocks, timing, device=device)
    report: dict[str, Any] = {}
    for name, values in seconds.items():
        report[name] = work.figures([s / steps for s in values], forwards=2)
        rate = report[name].pop("images_per_second")
        report[name][f"images_per_second_of_{SAMPLING_STEPS}_steps"] = round(
            rate / SAMPLING_STEPS, 4
        )
    return report | {"rate_over_plain": ratio(seconds, of="regscale", to="plain")}


def add_case(path: Path, where: dict[str, object], figures: dict[str, Any]) -> None:
    """Write a report, or put the case in the place of an equal one or after those it holds."""
    report: dict[str, Any] = {**where, "cases": []}
    if path.exists():
        report = json.loads(path.read_text())
        held = {key: report.get(key) for key in where}
        if held != json.loads(json.dumps(where)):
            raise RegscaleError(
                path,
                "is of another machine, or of other versions",
                found=json.dumps(held),
                fix="Choose another file.",
            )
    others = [c for c in report["cases"] if c["settings"] != figures["settings"]]
    report["cases"] = [*others, figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="B")
    for name in ("depth", "hidden-size", "num-heads"):
        parser.add_argument(f"--{name}", type=int, help="instead of the size's own")
    parser.add_argument("--patch-size", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, default="single", help="at one rank")
    parser.add_argument("--steps", type=int, default=10, help="of one loop in a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak-tflops", type=float, help="for mfu; H100, H200, A100 are known")
    parser.add_argument("--out", type=Path, help="a JSON file; else the report is printed")
    return parser


def main(arguments: list[str]) -> None:
    """One case, and its ratios on a line each."""
    o = _parser().parse_args(arguments)
    fields = ("size", "depth", "hidden_size", "num_heads", "patch_size", "batch_size")
    case = Case(
        **{name: getattr(o, name) for name in fields},
        precision=o.precision,
        compile=o.compile,
        engine=o.engine,
    )
    timing = Timing(steps=o.steps, repeats=o.repeats, clock=o.clock)
    device = join(o.device).device
    figures = {
        "command": " ".join(["python -m benchmarks.step", *arguments]),
        "date": date.today().isoformat(),
        **measure(case, timing, device=device, peak=o.peak_tflops),
    }
    if o.out is None:
        print(json.dumps({**machine(device), "cases": [figures]}, indent=2))
        return
    add_case(o.out, machine(device), figures)
    for kind in ("training", "sampling") if figures["sampling"] else ("training",):
        seconds = figures[kind]["regscale"]["seconds"]
        rate = figures[kind]["rate_over_plain"]["median"]
        print(f"{kind}: {1e3 * seconds:.2f} ms a step, {rate:.3f} of the plain rate -> {o.out}")


if __name__ == "__main__":
    run_command(main)
