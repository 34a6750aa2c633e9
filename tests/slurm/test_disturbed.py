"""Launchers as shipped on a real Slurm, disturbed: how each job ends, and that nothing is left."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from regscale.slurm.history import events, newest_step
from regscale.slurm.place import read
from tests.slurm.conftest import ENDLESS, Site

DECAY = "optimizer.decay_steps=1000"  # whatever the number of steps

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def alone(site: Site) -> Iterator[None]:
    """A test that fails leaves no job to the next."""
    yield
    site.lab.on("ctl", "scancel", "--user=root")
    site.is_empty()


def test_scancel_with_a_signal_saves_and_is_the_end(site: Site) -> None:
    job = site.digits("name=told", ENDLESS, DECAY)
    site.trains(job, "told")
    site.lab.on("ctl", "scancel", "--signal=TERM", job)
    output = site.ends(job)
    marker = read(site.run("told") / "marker.json")
    assert marker["reason"] == "SIGTERM"
    assert newest_step(site.run("told")) == marker["step"]
    assert f"done: ended by SIGTERM at step {marker['step']:,}" in output
    assert site.lab.job(job)["Restarts"] == "0"
    site.is_empty()


def losses(run: Path) -> dict[int, float]:
    """Of every step; of one that was made again, the last."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return {line["step"]: line["loss"] for line in lines}


def test_a_run_begun_on_two_nodes_goes_on_on_one(site: Site) -> None:
    """With the same samples: its losses are those of a run that one node makes alone, but for sums
    in another order."""
    step = newest_step(site.run("told"))
    assert step is not None
    more = f"training.num_steps={step + 5}"
    one = ["--nodes=1", "--job-name=one"]
    job = site.digits("name=told", more, DECAY, options=one)
    output = site.ends(job)
    assert f"resuming after step {step:,}" in output
    start = [e for e in events(site.run("told")) if e["event"] == "start"][-1]
    assert (start["ranks"], start["step"], start["lost"]) == (2, step, 0)
    assert f"done: finished at step {step + 5:,}" in output
    site.ends(site.digits("name=alone", more, DECAY, options=one))
    told, alone = losses(site.run("told")), losses(site.run("alone"))
    assert told == pytest.approx(alone, rel=1e-5)


def test_a_cancelled_job_is_the_end_and_leaves_no_process(site: Site) -> None:
    job = site.digits("name=cancelled", ENDLESS)
    site.trains(job, "cancelled")
    site.lab.on("ctl", "scancel", job)
    site.ends(job, "CANCELLED")
    site.is_empty()
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
    site.is_empty()


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


def test_a_preempted_job_saves_in_its_grace_time_and_goes_on(site: Site) -> None:
    job = site.digits("name=preempted", ENDLESS, options=["--nodes=1", "--exclusive"])
    site.trains(job, "preempted")
    node = f"--nodelist={site.lab.job(job)['BatchHost']}"
    urgent = ("--partition=urgent", node, "--nodes=1", "--exclusive")
    site.digits("name=urgent", "training.num_steps=1", options=urgent)
    start = site.trains(job, "preempted", restart=1)
    assert start["step"] > 0
    assert start["lost"] == 0
    (end,) = site.verdicts("preempted", job)
    assert (end["verdict"], end["why"]) == ("requeue", f"preempted at step {start['step']:,}")


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
    assert start["step"] > 0
    assert start["lost"] == 0
