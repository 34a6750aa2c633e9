"""MFU, images a second and the wait for data, as their formulas say."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from regscale import assemble
from regscale.cluster import Cluster
from regscale.describe import flops
from regscale.training.report import line
from regscale.training.step import open_loader
from regscale.training.throughput import (
    Throughput,
    encoding_flops,
    forward_flops,
    known_peak,
    peak_flops,
    training_flops,
)
from regscale.types import Moments
from tests.conftest import MakeConfig
from tests.processes import Pool

CPU = torch.device("cpu")
ALONE = Cluster(rank=0, world_size=1, local_rank=0, device=CPU)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_mfu_is_computed_flops_over_peak_flops_and_wait_a_share_of_the_time(
    clock: list[float],
) -> None:
    throughput = Throughput(3e9, 1e12, ALONE)
    with throughput.waiting():
        clock[0] += 0.5
    clock[0] += 9.5
    figures = throughput.read(1000)
    assert figures == {"images_per_second": 100.0, "mfu": pytest.approx(0.3), "wait": 0.05}
    clock[0] += 5.0
    assert throughput.read(1000) == {"images_per_second": 200, "mfu": pytest.approx(0.6), "wait": 0}


@pytest.mark.parametrize(("needed", "peak"), [(None, 1e12), (3e9, None)])
def test_without_flops_or_peak_there_is_no_mfu(needed: float | None, peak: float | None) -> None:
    throughput = Throughput(needed, peak, ALONE)
    throughput.count(None, None)  # type: ignore[arg-type]  # nothing is counted
    assert throughput.read(1).keys() == {"images_per_second", "wait"}


def test_a_time_without_a_step_divides_by_no_zero(clock: list[float]) -> None:
    assert Throughput(1.0, 1.0, ALONE).read(0)["images_per_second"] == 0


@pytest.mark.distributed
def test_the_longest_wait_of_any_rank_counts_and_all_devices_are_used(pool: Pool) -> None:
    for figures in pool.run(2, _waits):
        assert figures["wait"] > 0.5
        assert figures["mfu"] == pytest.approx(figures["images_per_second"] * 1e6 / 2e12)


def _waits(cluster: Cluster) -> dict[str, float]:
    throughput = Throughput(1e6, 1e12, cluster)
    if cluster.rank == 1:
        with throughput.waiting():
            time.sleep(0.2)
    return throughput.read(64)


def test_training_counts_three_forwards_of_the_backbone(tiny: MakeConfig) -> None:
    parts = assemble.pieces(tiny())
    condition = parts.conditioner.parse(parts.conditioner.examples()[:1])
    condition = type(condition)(*[field.to("meta") for field in condition])
    shapes = (parts.model, parts.latent_shape, parts.token_shapes, condition)
    assert training_flops(*shapes) == 3 * forward_flops(*shapes) == 3 * flops(parts)


def test_a_product_costs_two_for_each_multiply_add() -> None:
    class Linear(torch.nn.Module):
        def forward(self, latents: torch.Tensor, *others: object) -> torch.Tensor:
            return latents.flatten(1) @ torch.zeros(48, 5, device="meta")

    assert forward_flops(Linear(), (3, 4, 4), (), None) == 2 * 48 * 5


def test_encoders_count_where_the_data_leaves_them_to_compute(tiny: MakeConfig) -> None:
    """By one sample, however many there are; not where their features are stored."""
    job = assemble.job(tiny())
    batch = next(open_loader(job, 0))
    live = encoding_flops(job.towers, batch)
    assert live == encoding_flops(job.towers, next(batch.split(3))) > 0
    target = job.towers.targets["vit"]
    assert batch.images is not None
    features = {"vit": target(batch.images)}
    zeros = torch.zeros(len(batch.keys), *job.shapes.latents)
    stored = replace(batch, images=None, features=features, moments=Moments(zeros, zeros))
    assert encoding_flops(job.towers, stored) == 0


def test_encoders_are_counted_once(tiny: MakeConfig, clock: list[float]) -> None:
    job = assemble.job(tiny())
    batch = next(open_loader(job, 0))
    throughput = Throughput(1e6, 1e9, ALONE)
    for _ in range(3):
        throughput.count(job.towers, batch)
    clock[0] += 1.0
    expected = (1e6 + encoding_flops(job.towers, batch)) / 1e9
    assert throughput.read(1)["mfu"] == pytest.approx(expected)


NAMES = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GB200": None,
    "NVIDIA L40": None,
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "Tesla V100-SXM2-16GB": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_known_by_its_name_or_not_at_all(name: str) -> None:
    assert known_peak(name) == NAMES[name]


def test_a_config_may_say_the_peak() -> None:
    assert peak_flops(CPU) is None
    assert peak_flops(CPU, tflops=1.5) == 1.5e12


def test_a_line_shows_shares_as_percentages() -> None:
    figures = {"images_per_second": 7912.4, "mfu": 0.4718, "wait": 0.031, "memory_gib": 61.3}
    assert line(1, figures) == "step 1  7,912 img/s  mfu 47.2%  wait 3%  mem 61.3 GiB"
