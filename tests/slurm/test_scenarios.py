"""Launchers as shipped on a real Slurm: arguments, time limits, a second job, a wrong key."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from regscale.slurm.history import events, newest_step, reported_step
from regscale.slurm.place import read
from tests.slurm.conftest import Site
from tests.slurm.lab import CONTROL
from tests.training.test_loop import assert_same_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

NAME = 'it\'s "one" * $x'  # a folder's name that any shell would take apart
ALONE = ("--nodes=1", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def wrong(site: Site) -> str:
    """A job with a wrong key; it starts beside the next one."""
    return site.digits("name=wrong", "model.hiden_size=3", options=ALONE)


@pytest.fixture(scope="module")
def job(wrong: str, site: Site) -> str:
    """A job in the midst of a run that ends when its config file says so."""
    _num_steps(site, 1_000_000)
    job = site.digits(f"name={NAME}", "optimizer.decay_steps=1000")
    site.trains(job, NAME)
    return job


def _num_steps(site: Site, steps: int) -> None:
    path = site.folder / "configs/digits.yaml"
    text = path.read_text()
    path.write_text(
        re.sub(r"(?m)^  num_steps: \d+\n  batch", f"  num_steps: {steps}\n  batch", text)
    )


def test_two_nodes_train_and_every_argument_arrives(job: str, site: Site) -> None:
    run = site.run(NAME)
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert values["name"] == NAME
    assert values["model"]["hidden_size"] == 32
    assert values["optimizer"]["decay_steps"] == 1000
    assert sorted(path.name for path in (run / "logs").iterdir()) == [
        f"rank-{rank:05d}.log" for rank in range(4)
    ]
    (start,) = events(run)
    assert (start["nodes"], start["ranks"]) == ("n[1-2]", 4)
    output = site.output(job)
    assert len(re.findall(r"preflight: n[12]: 2 x ", output)) == 2
    assert "preflight passed in " in output


def test_a_wrong_key_is_one_message_and_no_restart(wrong: str, site: Site) -> None:
    output = site.ends(wrong, "FAILED")
    assert len(re.findall("(?m)^error: ", output)) == 1
    assert "hidden_size" in output.split("\nerror: ")[1]
    assert "\nfailed: " in output
    assert site.lab.job(wrong)["Restarts"] == "0"
    assert not site.run("wrong").exists()


def test_a_second_job_of_one_run_is_refused_with_the_first_ones_id(job: str, site: Site) -> None:
    second = site.digits(f"name={NAME}", "optimizer.decay_steps=1000", options=ALONE)
    output = site.ends(second, "FAILED")
    assert len(re.findall("(?m)^error: ", output)) == 1
    assert f"another process writes to this run; found job {job} (restart 0), " in output
    assert site.lab.job(job)["JobState"] == "RUNNING"


def test_a_job_that_is_warned_saves_at_once_and_is_requeued(job: str, site: Site) -> None:
    site.lab.on(CONTROL, "scancel", "--batch", "--signal=USR1", job)
    site.lab.wait(job, lambda facts: facts["Restarts"] == "1", "the job is requeued")
    run = site.run(NAME)
    marker, end = read(run / "marker.json"), events(run)[-1]
    assert marker["reason"] == "stop file"
    assert (end["event"], end["verdict"], end["step"]) == ("end", "requeue", marker["step"])
    assert newest_step(run) == reported_step(run) == marker["step"]


@pytest.mark.slow  # minutes on two cores; goes on from the test before
def test_a_job_stopped_by_two_time_limits_ends_as_the_undisturbed_one(job: str, site: Site) -> None:
    lab, run = site.lab, site.run(NAME)
    assert site.trains(job, NAME, restart=1)["step"] > 0
    lab.on(CONTROL, "scontrol", "update", f"JobId={job}", "TimeLimit=4")  # looked at every 30 s
    lab.wait(job, lambda facts: facts["Restarts"] == "2", "the job is requeued")
    lab.on(CONTROL, "scontrol", "update", f"JobId={job}", "TimeLimit=30")
    steps = (newest_step(run) or 0) + 10
    _num_steps(site, steps)
    whole = site.digits("name=whole", "optimizer.decay_steps=1000")
    output = site.ends(job)
    assert read(run / "marker.json")["reason"] == "finished"
    assert [end["verdict"] for end in site.verdicts(NAME, job)] == ["requeue", "requeue", "done"]
    assert sum(event["lost"] for event in events(run) if event["event"] == "start") == 0
    assert "requeue: stopped in time at step" in output
    assert output.rstrip().endswith(f"done: finished at step {steps:,}")
    site.ends(whole)
    assert_same_run(run, site.run("whole"))
    numbers = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert numbers == list(range(1, steps + 1))


@pytest.mark.slow
def test_status_tells_the_morning_after(job: str, site: Site) -> None:
    status = [*("-m", "regscale.slurm", "status"), str(site.run(NAME))]
    done = subprocess.run([sys.executable, *status], capture_output=True, text=True, check=True)
    assert "100.0%" in done.stdout
    assert f"at rest: job {job}, finished at step" in done.stdout
    assert "0 steps made again" in done.stdout


@pytest.mark.slow
def test_no_task_is_left(job: str, site: Site) -> None:
    site.is_empty()
    assert [site.lab.tasks(name) for name in site.lab.nodes] == [[]] * len(site.lab.nodes)
