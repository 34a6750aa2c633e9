"""Which process this is, as Slurm says."""

import pytest

from regscale.cluster import join


def port(patch: pytest.MonkeyPatch, job: int, restarts: int) -> int:
    patch.delenv("MASTER_PORT", raising=False)
    patch.setenv("SLURM_JOB_ID", str(job))
    patch.setenv("SLURM_RESTART_COUNT", str(restarts))
    return join("cpu").port


def test_jobs_that_follow_each_other_meet_at_different_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And so does a job that starts again; all below what Linux gives out, from 32,768 on."""
    starts = [(job, restarts) for job in range(4_999_900, 5_000_000) for restarts in range(20)]
    ports = {start: port(monkeypatch, *start) for start in starts}
    assert ports[4_999_999, 0] == 29_999
    assert ports[4_999_999, 3] == 20_302
    assert len(set(ports.values())) == len(starts)
    assert all(20_000 <= each < 30_000 for each in ports.values())


def test_a_port_that_is_chosen_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert port(monkeypatch, 7, 0) == 20_007
    monkeypatch.setenv("MASTER_PORT", "12345")
    assert join("cpu").port == 12_345
