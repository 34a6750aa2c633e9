"""What the preflight makes of what ranks report: who is named, and for what."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.slurm.preflight import BadNodes, Report, _problems, _refusal, check
from tests.processes import Pool

FOLDER = Path("runs/a")
HOSTS = ("n0", "n1", "n2")
CHECKED = {"code": "abc", "torch": "2.9", "config": "def"}


def reports(*hosts: str, **changes: Any) -> list[Report]:
    """Two ranks on each of three hosts; those on `hosts` differ by the changes."""
    made = [
        Report(
            host=HOSTS[rank // 2],
            rank=rank,
            device="NVIDIA H100",
            driver="580.1",
            free_memory_gib=79.0 - 0.1 * rank,
            versions=CHECKED,
            free_disk_gib=100.0,
            clock=1e9 + 0.5 * rank,
            write_seconds=0.01,
            written="",
        )
        for rank in range(6)
    ]
    return [dataclasses.replace(r, **changes) if r.host in hosts else r for r in made]


def problems(found: list[Report]) -> set[tuple[str, str]]:
    return set(_problems(found, FOLDER))


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGSCALE_MAX_SKEW_SECONDS", "REGSCALE_MIN_FREE_GIB"):
        monkeypatch.delenv(name, raising=False)


def test_ranks_that_agree_have_no_problems() -> None:
    assert not problems(reports())
    assert not problems(reports(*HOSTS, free_memory_gib=None, driver=""))  # on CPUs


DIFFERENT = {
    "a clock": ({"clock": 1e9 - 59.75}, "the clock is off by -60.0 s"),
    "a device": ({"device": "NVIDIA A100"}, "device is 'NVIDIA A100', on most ranks 'NVIDIA H100'"),
    "a driver": ({"driver": "570.2"}, "driver is '570.2', on most ranks '580.1'"),
    "the code": (
        {"versions": CHECKED | {"code": "xyz"}},
        "code is 'xyz', on most ranks 'abc'",
    ),
    "the config": (
        {"versions": CHECKED | {"config": "uvw"}},
        "config is 'uvw', on most ranks 'def'",
    ),
    "a disk": ({"free_disk_gib": 0.4}, "runs/a has 0.4 GiB free, less than 1"),
    "a folder": (
        {"written": "cannot be written: Read-only file system", "free_disk_gib": 0.0},
        "runs/a cannot be written: Read-only file system",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_node_that_differs_is_named_alone(name: str) -> None:
    changes, text = DIFFERENT[name]
    assert problems(reports("n1", **changes)) == {("n1", text)}


def test_a_gpu_that_another_process_holds_is_named_by_its_rank() -> None:
    found = reports()
    found[3] = dataclasses.replace(found[3], free_memory_gib=60.0)
    text = "the GPU of rank 3 has 60.0 GiB free, the others 78.7: another process holds it"
    assert problems(found) == {("n1", text)}
    found[3] = dataclasses.replace(found[3], free_memory_gib=72.0)  # a tenth less is usual
    assert not problems(found)


def test_the_bounds_are_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    found = reports("n2", clock=1e9 - 60.0, free_disk_gib=20.0)
    monkeypatch.setenv("REGSCALE_MAX_SKEW_SECONDS", "90")
    assert not problems(found)
    monkeypatch.setenv("REGSCALE_MIN_FREE_GIB", "50")
    assert problems(found) == {("n2", "runs/a has 20.0 GiB free, less than 50")}


def refusal(found: list[Report]) -> RegscaleError:
    return _refusal(list(_problems(found, FOLDER)), set(HOSTS))


def test_a_bad_node_is_named_once_for_all_its_ranks_with_what_to_do() -> None:
    error = refusal(reports("n1", driver="570.2", free_disk_gib=0.0))
    assert isinstance(error, BadNodes)
    assert error.nodes == ("n1",)
    assert str(error) == (
        "preflight: n1: cannot take part in the run; found n1: runs/a has 0.0 GiB free, less than "
        "1, driver is '570.2', on most ranks '580.1'. Leave it out with sbatch --exclude=n1, or "
        "let the launcher do so: REGSCALE_EXCLUDE_BAD_NODES=1."
    )


@pytest.mark.parametrize(
    ("hosts", "written"),
    [
        (HOSTS, f"cannot be written: {os.strerror(errno.ENOSPC)}"),
        (("n1", "n2"), "is not the folder that rank 0 sees"),
    ],
)
def test_what_most_nodes_have_makes_no_node_a_bad_one(hosts: tuple[str, ...], written: str) -> None:
    """Leaving them out would be to leave out healthy ones."""
    error = refusal(reports(*hosts, written=written))
    assert not isinstance(error, BadNodes)
    assert f"n2: runs/a {written}" in str(error)
    assert "--exclude" not in str(error)


def checked(
    cluster: Cluster, folder: Path, *, floor: str, late_rank: int = -1
) -> tuple[str, tuple[str, ...]]:
    """The message and the bad nodes of a check in which each rank is a host, and one is late."""
    real = dist.all_reduce

    def late(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.1 * (cluster.rank == late_rank))
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURMD_NODENAME", HOSTS[cluster.rank])
        patch.setenv("REGSCALE_MIN_ALLREDUCE_GBPS", floor)
        patch.setattr(dist, "all_reduce", late)
        try:
            check(folder, device="cpu")
        except RegscaleError as error:
            return str(error), getattr(error, "nodes", ())
    return "", ()


@pytest.mark.distributed
def test_a_network_below_the_floor_is_no_fault_of_two_nodes(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(2, checked, tmp_path, floor="0") == [("", ())] * 2
    for message, nodes in pool.run(2, checked, tmp_path, floor="1e9"):
        assert message.startswith("preflight: n0, n1: cannot take part")
        assert " GB/s, the floor is 1e+09" in message
        assert nodes == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.distributed
def test_of_three_nodes_the_slow_one_is_named(pool: Pool, tmp_path: Path) -> None:
    """1 MiB in 0.1 s is 0.01 GB/s; a pair without the late one takes a millisecond."""
    for message, nodes in pool.run(3, checked, tmp_path, floor="0.03", late_rank=1):
        assert message.startswith("preflight: n1: cannot take part")
        assert nodes == ("n1",)
