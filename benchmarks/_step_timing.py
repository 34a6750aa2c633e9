"""Rates of several ways to do the same work, taken turn by turn on one device."""

import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch

from regscale import __version__

# Dense bf16 products and, for fp32, TF32: from the data sheets, in TFLOP/s.
PEAKS = {
    "H100 PCIe": (756, 378),
    "H100": (989, 495),
    "H200": (989, 495),
    "A100": (312, 156),
}

CLOCKS = {"wall": perf_counter, "processor": process_time}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How often and by which clock. `processor` counts the time that this process ran, which on a
    CPU shared with other programs is the steadier of the two."""

    steps: int = 10  # of one loop in a turn
    repeats: int = 7  # turns
    clock: str = "wall"


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Of a device that is in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = [peaks for part, peaks in PEAKS.items() if part in name]
    return float(found[0][precision == "fp32"]) if found else None


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def interleave(
    blocks: Mapping[str, Callable[[], object]], timing: Timing, *, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each block in each turn; every other turn runs backwards, so that a device that
    warms up or is shared does not favour one of them."""
    now = CLOCKS[timing.clock]
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(timing.repeats):
        for name in list(blocks)[:: 1 if turn % 2 == 0 else -1]:
            synchronise(device)
            start = now()
            blocks[name]()
            synchronise(device)
            seconds[name].append(now() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], *, of: str, to: str) -> dict[str, object]:
    """The rate of one in the rate of another, turn by turn, and the median over turns."""
    pairs = [b / a for a, b in zip(seconds[of], seconds[to], strict=True)]
    return {"median": round(median(pairs), 4), "turns": [round(pair, 4) for pair in pairs]}


def machine(device: torch.device) -> dict[str, object]:
    """What rates depend on besides the program."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "regscale": __version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


class Memory:
    """Bytes that one of several loops on a device holds, and its peak within a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._allocated()
        self._held = 0

    def built(self) -> None:
        """The loop stands and has made a step: what came since is its own."""
        self._held = self._allocated() - self._before

    def peak_gib(self, step: Callable[[], None]) -> float | None:
        """What it holds and the most that a step adds; None where the device does not count."""
        if self._device.type != "cuda":
            return None
        before = self._allocated()
        torch.cuda.reset_peak_memory_stats(self._device)
        step()
        synchronise(self._device)
        added = torch.cuda.max_memory_allocated(self._device) - before
        return round((self._held + added) / 2**30, 3)

    def _allocated(self) -> int:
        if self._device.type != "cuda":
            return 0
        return int(torch.cuda.memory_allocated(self._device))
