"""How well a run uses its devices: images a second, MFU, the wait for data, memory."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from regscale.cluster import Cluster
from regscale.encoding import Towers
from regscale.types import Batch

PEAKS = {  # dense bf16 and fp16 TFLOP/s by what torch.cuda.get_device_name says
    r"A100": 312.0,
    r"H100 PCIe": 756.0,
    r"H100 NVL": 835.0,
    r"(H100|GH200)": 989.0,
    r"H200 NVL": 835.0,
    r"H200": 989.0,
    r"B200": 2250.0,
    r"L40S": 362.0,
    r"RTX 4090$": 165.0,
}


class Throughput:
    """Figures between two reports. `flops_per_image` is that of the backbone's training; where it
    or the device's peak is not known, there is no MFU."""

    def __init__(
        self, flops_per_image: float | None, peak_flops: float | None, cluster: Cluster
    ) -> None:
        self._flops, self._peak, self._cluster = flops_per_image, peak_flops, cluster
        self._counted = flops_per_image is None or peak_flops is None
        self._since, self._waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches a batch."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def count(self, towers: Towers, batch: Batch) -> None:
        """Add the encoders that the run's data leaves to compute; only the first call counts."""
        if not self._counted:
            self._counted = True
            assert self._flops is not None, "where it is not known there is nothing to count"
            self._flops += encoding_flops(towers, batch)

    def read(self, samples: int) -> dict[str, float]:
        """Of `samples` of all devices since the last call: the longest wait and the most memory of
        any rank. Collective; after something that waits for the device."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        everyone = self._cluster.gather((self._waited / seconds, _memory_gib(self._cluster.device)))
        self._since, self._waited = now, 0.0
        figures = {"images_per_second": samples / seconds}
        if self._flops is not None and self._peak is not None:
            peak = self._peak * self._cluster.world_size
            figures["mfu"] = samples * self._flops / (seconds * peak)
        figures["wait"] = max(wait for wait, _ in everyone)
        if self._cluster.device.type == "cuda":
            figures["memory_gib"] = max(memory for _, memory in everyone)
        return figures


def training_flops(
    model: nn.Module,
    latent_shape: tuple[int, ...],
    token_shapes: tuple[tuple[int, ...], ...],
    condition: Any,
) -> float:
    """Of forward and backward of one image; the model and the condition are on the meta device."""
    return 3 * forward_flops(model, latent_shape, token_shapes, condition)


def forward_flops(
    model: nn.Module,
    latent_shape: tuple[int, ...],
    token_shapes: tuple[tuple[int, ...], ...],
    condition: Any,
) -> float:
    """Of one forward of one image: 2 for each multiply-add of a product."""
    meta = torch.device("meta")
    latents = torch.zeros(1, *latent_shape, device=meta)
    tokens = tuple(torch.zeros(1, *shape, device=meta) for shape in token_shapes)
    t = torch.zeros(1, device=meta)
    with FlopCounterMode(display=False) as counter:
        model(latents, tokens, t, (t,) * len(tokens), condition)
    return float(counter.get_total_flops())


def encoding_flops(towers: Towers, batch: Batch) -> float:
    """Of what the towers compute for one sample of such a batch."""
    with FlopCounterMode(display=False) as counter:
        towers.encode(next(batch.split(1)))
    return float(counter.get_total_flops())


def peak_flops(device: torch.device, *, tflops: float | None = None) -> float | None:
    """The device's dense bf16 FLOP/s, whatever the run computes in; None where not known.

    `tflops` says it of a device that the table lacks.
    """
    if tflops is not None:
        return tflops * 1e12
    return known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def known_peak(name: str) -> float | None:
    """Of a device by its name."""
    for pattern, tflops in PEAKS.items():
        if re.search(rf"\b{pattern}(?!\w)", name):
            return tflops * 1e12
    return None


def _memory_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
