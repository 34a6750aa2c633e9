"""Launchers as shipped on a real Slurm, disturbed: how each ends, and that the run goes on.

`make test-slurm` runs these; they share one lab and, where they can, one job.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from regscale.slurm.history import events, newest_step
from regscale.slurm.place import read
from tests.slurm.conftest import ENDLESS, Site
from tests.slurm.lab import Lab

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]

EVERY = 20  # updates between checkpoints; one more save may be under way


def ends(run: Path, job: str) -> list[dict[str, str]]:
    return [e for e in events(run) if e["event"] == "end" and e["job"] == job]


def gone(site: Site, seconds: float = 30) -> None:
    """No process of any job is left on any node."""
    site.lab.until(
        lambda: not any(site.lab.tasks(name) for name in site.lab.nodes),
        "no task is left",
        seconds=seconds,
    )


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
    gone(site)


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
    lab, run = site.lab, site.run("endless")
    before = int(lab.job(endless)["Restarts"])
    disturb(lab, endless)
    start = site.trains(endless, "endless", restart=before + 1)
    assert start["step"] > 0
    assert start["lost"] <= lost
    told = [end for end in ends(run, endless) if end["restart"] == before]
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


def test_scancel_with_a_signal_saves_and_is_the_end(site: Site) -> None:
    job = site.digits("name=told", ENDLESS)
    site.trains(job, "told")
    site.lab.on("ctl", "scancel", "--signal=TERM", job)
    output = site.ends(job)
    marker = read(site.run("told") / "marker.json")
    assert marker["reason"] == "SIGTERM"
    assert newest_step(site.run("told")) == marker["step"]
    assert f"done: ended by SIGTERM at step {marker['step']:,}" in output
    assert site.lab.job(job)["Restarts"] == "0"
    gone(site)


def test_a_run_begun_on_two_nodes_goes_on_on_one(site: Site) -> None:
    step = newest_step(site.run("told"))
    assert step is not None
    more = f"training.num_steps={step + 5}"
    job = site.digits("name=told", more, options=["--nodes=1", "--job-name=one"])
    output = site.ends(job)
    assert f"resuming after step {step:,}" in output
    start = [e for e in events(site.run("told")) if e["event"] == "start"][-1]
    assert (start["ranks"], start["step"], start["lost"]) == (2, step, 0)
    assert f"done: finished at step {step + 5:,}" in output


def test_a_cancelled_job_is_the_end_and_leaves_no_process(site: Site) -> None:
    job = site.digits("name=cancelled", ENDLESS)
    site.trains(job, "cancelled")
    site.lab.on("ctl", "scancel", job)
    site.ends(job, "CANCELLED")
    gone(site)
    assert newest_step(site.run("cancelled"))  # SIGTERM comes some seconds before SIGKILL
    assert site.lab.job(job)["Restarts"] == "0"


def test_a_rank_killed_again_and_again_is_a_clear_stop(site: Site) -> None:
    job = site.digits(
        *("name=doomed", ENDLESS, "training.checkpoint_every=100000"),
        REGSCALE_MAX_IDLE_RESTARTS="1",
        options=["--nodes=1"],
    )
    for restart in range(2):
        site.trains(job, "doomed", restart)
        site.lab.on("n1", "kill", "-KILL", str(site.lab.tasks("n1")[0]))
    output = site.ends(job, "FAILED")
    assert "1 restarts in a row without a checkpoint after step 0" in output
    gone(site)


def test_a_failing_preflight_names_the_node_and_leaves_it_out_when_asked(site: Site) -> None:
    lab = site.lab
    run = site.run("fit")
    run.mkdir(parents=True)
    lab.on("n2", "mount", "-t", "tmpfs", "-o", "ro", "none", str(run))
    try:
        job = site.digits("name=fit", "training.num_steps=5")
        output = site.ends(job, "FAILED")
        assert "error: preflight: n2: cannot take part in the run; found n2: " in output
        assert "Read-only file system" in output
        assert "sbatch --exclude=n2" in output
        job = site.digits("name=fit", "training.num_steps=5", REGSCALE_EXCLUDE_BAD_NODES="1")
        output = site.ends(job)
        assert "requeue, avoiding n2: preflight: n2" in output
        assert lab.job(job)["ExcNodeList"] == "n2"
        assert events(run)[-2]["nodes"] == "n[1,3]"
    finally:
        lab.on("n2", "umount", str(run))


def test_a_second_job_of_the_same_name_waits_where_singleton_is_asked_for(site: Site) -> None:
    options = ("--dependency=singleton", "--job-name=chain", "--nodes=1")
    chain = [
        site.digits("name=chain", ENDLESS, options=options, REGSCALE_REQUEUE="no") for _ in range(2)
    ]
    site.trains(chain[0], "chain")
    assert site.lab.job(chain[1])["Reason"] == "Dependency"
    site.lab.on("ctl", "scancel", "--batch", "--signal=USR1", chain[0])
    output = site.ends(chain[0])
    assert "REGSCALE_REQUEUE=no, the same command goes on" in output
    start = site.trains(chain[1], "chain")
    assert start["step"] == newest_step(site.run("chain")) or start["step"] > 0
    assert start["lost"] == 0
    site.lab.on("ctl", "scancel", chain[1])
    gone(site)
