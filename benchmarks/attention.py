"""Forward and backward of each backend of attention, at the shapes of SiT-B/2 and XL/2, in bf16.

    python -m benchmarks.attention --out attention.json

Prints and writes the rate of each over that of `sdpa`, taken turn by turn.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks._step_timing import Timing, interleave, machine, ratio
from regscale.errors import RegscaleError
from regscale.layers.attention import Setting, attention, available, decide
from regscale.log import run_command


class Case(NamedTuple):
    """One call of attention in a block."""

    name: str
    batch_size: int
    num_heads: int
    head_dim: int
    tokens: int
    padding: int = 0  # at the end of every other sample, as text of different lengths leaves it

    def __str__(self) -> str:
        padded = f", {self.padding} padded in every other" if self.padding else ""
        return f"{self.name} {self.tokens} tokens of {self.batch_size}{padded}"


CASES = (
    Case("B/2", 128, 12, 64, 257),
    Case("XL/2", 32, 16, 72, 257),
    Case("XL/2", 32, 16, 72, 1025),
    Case("XL/2", 32, 16, 72, 257 + 120, padding=100),
    Case("XL/2", 32, 16, 72, 1025 + 120, padding=100),
)


def measure(
    case: Case, timing: Timing, *, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Milliseconds of each backend that can run, and its rate over that of sdpa."""
    setting = Setting.of(device, dtype, head_dim=case.head_dim, has_lengths=case.padding > 0)
    backends = available(setting)
    inputs, lengths = _inputs(case, device, dtype)
    blocks: dict[str, Callable[[], object]] = {
        name: partial(_repeat, inputs, lengths, name, timing.steps) for name in backends
    }
    for block in blocks.values():  # kernels are compiled and plans made
        block()
    seconds = interleave(blocks, timing, device=device)
    return {
        "case": case._asdict(),
        "setting": str(setting),
        "auto": decide("auto", setting)._asdict(),
        "backends": {
            name: {
                "kernel": decide(name, setting).kernel,  # type: ignore[arg-type]
                "milliseconds": round(1e3 * median(seconds[name]) / timing.steps, 4),
                "rate_over_sdpa": ratio(seconds, of=name, to="sdpa"),
            }
            for name in backends
        },
    }


def _inputs(
    case: Case, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor | None]:
    """Queries, keys and values as views of one product, and key lengths."""
    product = torch.randn(
        case.batch_size, case.tokens, 3, case.num_heads, case.head_dim, device=device, dtype=dtype
    )
    inputs = [x.requires_grad_() for x in product.permute(2, 0, 3, 1, 4).unbind(0)]
    if case.padding == 0:
        return inputs, None
    lengths = torch.full((case.batch_size,), case.tokens, device=device)
    lengths[::2] -= case.padding
    return inputs, lengths


def _repeat(inputs: list[Tensor], lengths: Tensor | None, backend: Any, times: int) -> None:
    for _ in range(times):
        out = attention(*inputs, key_lengths=lengths, backend=backend)
        torch.autograd.grad(out, inputs, torch.ones_like(out))


def lines(report: dict[str, Any]) -> list[str]:
    """A line for each case: milliseconds, and the rate over sdpa."""
    made = []
    for row in report["cases"]:
        auto = row["auto"]["backend"]
        cells = [
            f"{name}{'*' if name == auto else ''} {one['milliseconds']:.3f} ms"
            f" ({one['rate_over_sdpa']['median']:.2f})"
            for name, one in row["backends"].items()
        ]
        made.append(f"{Case(**row['case'])}:  " + "  ".join(cells))
    return [*made, "forward and backward of one call; (rate over sdpa); * is what auto takes"]


def write(path: Path, cases: Sequence[Case], timing: Timing, *, device: torch.device) -> list[str]:
    """Measure, write the report and return its lines."""
    rows = [measure(case, timing, device=device) for case in cases]
    report = {"machine": machine(device), "cases": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return lines(report)


def main(arguments: list[str]) -> None:
    """All cases, or one sentence where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("attention.json"))
    path = parser.parse_args(arguments).out
    if not torch.cuda.is_available():
        raise RegscaleError(
            "benchmarks.attention",
            "needs a CUDA device",
            found=f"none, with torch {torch.__version__}",
            fix="Use a machine with an NVIDIA GPU and a CUDA build of torch.",
        )
    timing = Timing(steps=20, repeats=7)
    print(*write(path, CASES, timing, device=torch.device("cuda")), f"written: {path}", sep="\n")


if __name__ == "__main__":
    run_command(main)
