"""One job on a real Slurm that is disturbed in six ways and goes on each time."""

from collections.abc import Callable, Iterator

import pytest

from regscale.slurm.history import newest_step
from tests.slurm.conftest import ENDLESS, Site
from tests.slurm.lab import Lab

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]

EVERY = 20  # updates between checkpoints; one more save may be under way


@pytest.fixture(scope="module")
def endless(site: Site) -> Iterator[str]:
    """One job that every test below disturbs, and that goes on each time."""
    job = site.digits(
        *("name=endless", ENDLESS, f"training.checkpoint_every={EVERY}"),
        REGSCALE_MAX_IDLE_RESTARTS="100",  # a disturbance comes before the next checkpoint
    )
    site.trains(job, "endless")
    site.lab.until(lambda: newest_step(site.run("endless")) is not None, "it saves", seconds=60)
    yield job
    site.lab.on("ctl", "scancel", job)
    site.is_empty()


def kill_rank(lab: Lab, job: str) -> None:
    lab.on("n2", "kill", "-KILL", str(lab.tasks("n2")[0]))


def stop_rank(lab: Lab, job: str) -> None:
    lab.on("n2", "kill", "-STOP", str(lab.tasks("n2")[0]))


def requeue(lab: Lab, job: str) -> None:
    lab.on("ctl", "scontrol", "requeue", job)


def power_cycle(lab: Lab, job: str) -> None:
    """Faster than Slurm notices: the job stays, half dead."""
    lab.power_off("n2")
    lab.power_on("n2")


def kill_slurmd(lab: Lab, job: str) -> None:
    lab.kill_slurmd("n2")


def kill_slurmd_of_the_batch_script(lab: Lab, job: str) -> None:
    lab.kill_slurmd("n1")


@pytest.mark.parametrize(
    ("disturb", "why", "lost"),
    [
        (kill_rank, "", 2 * EVERY),
        (stop_rank, " on n2 was silent for ", 2 * EVERY),
        (requeue, None, 0),
        (power_cycle, None, 2 * EVERY),
        (kill_slurmd, None, 2 * EVERY),
        (kill_slurmd_of_the_batch_script, None, 2 * EVERY),
    ],
)
def test_a_job_goes_on_after(
    endless: str,
    site: Site,
    disturb: Callable[[Lab, str], None],
    why: str | None,
    lost: int,
) -> None:
    """`why` is what its history says, None where Slurm ended it before it could say anything; at
    most `lost` steps are made again, those since the last checkpoint."""
    lab = site.lab
    before = int(lab.job(endless)["Restarts"])
    disturb(lab, endless)
    start = site.trains(endless, "endless", restart=before + 1)
    assert start["step"] > 0
    assert start["lost"] <= lost
    told = [end for end in site.verdicts("endless", endless) if end["restart"] == before]
    if why is not None:
        assert [end["verdict"] for end in told] == ["requeue"]
        assert why in told[0]["why"]
    for name in lab.nodes:  # the nodes that lost their daemon come back
        if not lab.tasks(name, "slurmd -N"):
            lab.start_slurmd(name)
    ours = 4

    def tasks() -> list[int]:
        return [len(lab.tasks(name)) for name in lab.nodes]

    lab.until(lambda: sum(tasks()) == ours, f"older tasks have left {tasks()}", seconds=60)
