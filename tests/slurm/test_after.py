"""What follows the end of a job, from what its tasks left behind."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from regscale import failures
from regscale.errors import RegscaleError
from regscale.slurm import after, history, status
from regscale.slurm.place import Place, failed, write
from regscale.slurm.watch import Watch

MakePlace = Any


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs/a"


@pytest.fixture
def make(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlace:
    """A place in a job whose run has some checkpoint."""
    for name in ("REGSCALE_REQUEUE", "REGSCALE_EXCLUDE_BAD_NODES", "REGSCALE_MAX_IDLE_RESTARTS"):
        monkeypatch.delenv(name, raising=False)

    def place(restart: int = 0, step: int | None = None, rank: int = 0, ranks: int = 4) -> Place:
        folder = tmp_path / "job"
        write(folder / "run.json", {"run": str(run)})
        (folder / "restart").write_text(f"{restart}\n")
        if step is not None:
            (run / f"checkpoints/step-{step:08d}").mkdir(parents=True, exist_ok=True)
        return Place("7", restart, rank, ranks, f"n{rank // 2 + 1}", folder)

    return place


def decided(place: Place, run: Path, code: int = 0, *, preempted: bool = False) -> after.Verdict:
    return after.decide(place, code, preempted=preempted, run=run)


@pytest.mark.parametrize(
    ("reason", "preempted", "expected"),
    [
        ("finished", False, after.DONE),
        ("finished", True, after.DONE),
        ("stop file", False, after.REQUEUE),
        ("SIGUSR1", False, after.REQUEUE),
        ("SIGTERM", False, after.DONE),
        ("SIGTERM", True, after.REQUEUE),
        ("SIGINT", False, after.DONE),
    ],
)
def test_the_reason_in_the_outcome_decides(
    make: MakePlace, run: Path, reason: str, preempted: bool, expected: int
) -> None:
    place = make(step=10)
    write(place.outcome, {"reason": reason, "step": 10})
    for code in (0, 1, 143):  # srun's status does not matter where there is a word
        assert decided(place, run, code, preempted=preempted).status == expected


def test_a_sigterm_that_srun_sent_because_a_task_failed_is_no_wish(
    make: MakePlace, run: Path
) -> None:
    place = make()
    failed(place, "error", "model.hiden_size: is not a key")
    time.sleep(0.01)
    write(place.outcome, {"reason": "SIGTERM"})
    assert decided(place, run, 2).why.startswith("model.hiden_size: is not a key")


def test_a_sigterm_after_a_task_was_killed_is_no_wish(make: MakePlace, run: Path) -> None:
    place = make()
    write(place.outcome, {"reason": "SIGTERM"})
    assert decided(place, run, 137).status == after.REQUEUE
    assert decided(place, run, 0).status == after.DONE


def test_a_death_without_a_word_is_tried_again(make: MakePlace, run: Path) -> None:
    assert decided(make(step=10), run, 137) == after.Verdict(
        after.REQUEUE, "a task died without a word (srun: 137)"
    )


def test_tasks_ended_by_scancel_before_they_heard_it_are_not_tried_again(
    make: MakePlace, run: Path
) -> None:
    assert decided(make(), run, 143).status == after.DONE


def test_a_users_fault_is_not_tried_again_whatever_else_broke(make: MakePlace, run: Path) -> None:
    place = make(rank=3)
    failed(make(rank=0), "fault", "RuntimeError: Connection closed by peer")
    failed(place, "error", "model.hiden_size: is unknown")
    verdict = decided(make(), run, 2)
    assert verdict.status == after.FAILED
    assert verdict.why == "model.hiden_size: is unknown (rank 3 on n2)"


def test_a_rank_that_the_runs_own_watchdog_ends_is_told(
    make: MakePlace, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(restart=1, step=10, rank=2)
    monkeypatch.setenv("REGSCALE_JOB", str(place.folder))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    folder = failures.folder()
    assert folder is not None
    failures.leave_word(folder, "fault", "has not moved for 600 s", rank=2, host="n2")
    why = "has not moved for 600 s (rank 2 on n2)"
    assert decided(place, run, 70) == after.Verdict(after.REQUEUE, why)


def test_restarts_without_a_new_checkpoint_are_counted_and_end(make: MakePlace, run: Path) -> None:
    verdicts = [decided(make(restart, step=10), run, 137) for restart in range(4)]
    assert [v.status for v in verdicts] == [after.REQUEUE] * 3 + [after.FAILED]
    assert "3 restarts in a row without a checkpoint after step 10" in verdicts[3].why


def test_a_new_checkpoint_begins_the_count_again(make: MakePlace, run: Path) -> None:
    for restart in range(12):
        assert decided(make(restart, step=restart // 3), run, 137).status == after.REQUEUE


def test_of_a_job_without_checkpoints_deaths_are_counted_since_the_last_warning(
    make: MakePlace,
) -> None:
    def verdict(restart: int, code: int) -> after.Verdict:
        return after.decide(make(restart), code, preempted=False, run=None)

    for restart in range(5):
        write(make(restart).outcome, {"reason": "stop file"})
        assert verdict(restart, 0).status == after.REQUEUE
    assert [verdict(restart, 137).status for restart in (5, 6)] == [after.REQUEUE] * 2
    last = verdict(7, 137)
    assert last.status == after.FAILED
    assert last.why.endswith("; 3 restarts in a row")


def test_a_bad_node_is_left_out_when_that_is_asked_for(
    make: MakePlace, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make()
    failed(place, "error", "preflight: n2: cannot take part", nodes=("n2",))
    assert decided(place, run, 2).status == after.FAILED
    monkeypatch.setenv("REGSCALE_EXCLUDE_BAD_NODES", "1")
    verdict = decided(place, run, 2)
    assert (verdict.status, verdict.exclude) == (after.REQUEUE, ("n2",))
    failed(make(restart=1), "error", "preflight: n1, n2: cannot take part")
    assert decided(make(restart=1), run, 2).status == after.FAILED


def test_a_site_without_requeue_ends_well_and_says_how_to_go_on(
    make: MakePlace, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGSCALE_REQUEUE", "no")
    place = make(step=10)
    write(place.outcome, {"reason": "stop file", "step": 10})
    verdict = decided(place, run)
    assert verdict.status == after.DONE
    assert verdict.why.endswith("the same command goes on")


def test_an_older_incarnation_does_nothing(
    make: MakePlace, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = make(restart=2, step=10).folder
    monkeypatch.setenv("REGSCALE_JOB", str(folder))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    options = argparse.Namespace(status=137, preempted=False)
    assert after.run(options) == after.DONE
    assert "a newer incarnation" in capsys.readouterr().out
    assert history.events(run) == []


def test_the_verdict_is_noted_in_the_runs_history(
    make: MakePlace, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = make(step=10).folder
    for name, value in {"REGSCALE_JOB": str(folder), "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert after.run(argparse.Namespace(status=137, preempted=False)) == after.REQUEUE
    (event,) = history.events(run)
    assert (event["event"], event["job"], event["verdict"]) == ("end", "7", "requeue")
    assert capsys.readouterr().out.startswith("requeue: a task died")


def test_one_reason_is_printed_once_for_all_tasks(make: MakePlace) -> None:
    told = [failed(make(rank=rank), "error", "the same") for rank in range(4)]
    assert told == [True, False, False, False]
    assert failed(make(), "error", "another")


def test_what_the_batch_script_calls_imports_no_torch() -> None:
    code = (
        "import sys, regscale.slurm.after, regscale.slurm.status; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_status_of_no_run_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="is no run folder"):
        list(status.lines(tmp_path / "none", now=0.0))


def test_status_tells_step_speed_and_the_next_checkpoint(make: MakePlace, run: Path) -> None:
    make(step=400)
    (run / "config.yaml").write_text(
        "training: {num_steps: 1000, checkpoint_every: 200, batch_size: 64}"
    )
    (run / "metrics.jsonl").write_text('{"step": 450, "images_per_second": 32.0}\n')
    history.add(run, "start", job="7", restart=0, nodes="n[1-2]", ranks=4, step=0, lost=0)
    history.add(run, "end", job="7", restart=0, step=400, verdict="requeue", why="stopped in time")
    history.add(run, "start", job="7", restart=1, nodes="n[1-2]", ranks=4, step=400, lost=12)
    lease = {"job": "7", "restarts": 1, "host": "n1", "heartbeat": 1000.0}
    write(run / "lease.json", lease)
    assert list(status.lines(run, now=1020.0)) == [
        "step         450 of 1,000 (45.0%)",
        "state        running: job 7 (restart 1), first rank on n1, heartbeat 20 s ago",
        "checkpoint   step 400; next at 600, in about 5 min",
        "speed        32 img/s, 2 s a step; 18 min to the end",
        "starts       2, of 1 jobs; 12 steps made again, of 450",
        "             job 7 restart 0, 4 ranks on n[1-2], from step 0: requeue: stopped in time",
        "             job 7 restart 1, 4 ranks on n[1-2], from step 400: the last one",
    ]


def test_a_torn_line_of_the_history_is_passed_over(run: Path) -> None:
    history.add(run, "start", job="7")
    with (run / "history.jsonl").open("a") as file:
        file.write('{"event": "en')
    assert [event["event"] for event in history.events(run)] == ["start"]


WATCHED = """
import os, sys, time
from pathlib import Path
from regscale.slurm.place import Place
from regscale.slurm.watch import Watch
place = Place("7", int(sys.argv[3]), int(sys.argv[2]), 2, f"n{sys.argv[2]}", Path(sys.argv[1]))
with Watch(place) as watch:
    watch.guard(Path(sys.argv[1]))
    time.sleep(60)
"""


def watched(folder: Path, rank: int, restart: int = 0) -> subprocess.Popen[str]:
    environment = os.environ | {"REGSCALE_SILENT_SECONDS": "1.5"}
    arguments = [sys.executable, "-c", WATCHED, str(folder), str(rank), str(restart)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)


def beating(folder: Path, rank: int) -> None:
    """Wait until a rank has beaten for the first time: it has been imported and watches."""
    deadline = time.monotonic() + 60
    while not (folder / f"beats-0/{rank}.json").exists():
        assert time.monotonic() < deadline, f"rank {rank} does not beat"
        time.sleep(0.05)


def test_a_stopped_rank_is_named_by_its_neighbour_which_leaves(tmp_path: Path) -> None:
    ranks = [watched(tmp_path, rank) for rank in range(2)]
    for rank in range(2):
        beating(tmp_path, rank)
    os.kill(ranks[1].pid, 19)
    _, told = ranks[0].communicate(timeout=30)
    ranks[1].kill()
    ranks[1].communicate()
    assert ranks[0].returncode == 70
    assert "rank 0 leaves: rank 1 on n1 was silent for " in told
    assert after.decide(
        Place("7", 0, 0, 2, "n0", tmp_path), 70, preempted=False, run=None
    ).why.startswith("rank 1 on n1 was silent")


def test_ranks_leave_when_a_newer_incarnation_holds_the_lease(tmp_path: Path) -> None:
    write(tmp_path / "lease.json", {"job": "7", "restarts": 1})
    rank = watched(tmp_path, 0)
    _, told = rank.communicate(timeout=30)
    assert rank.returncode == 70
    assert "job 7 (restart 1) writes this run now" in told


def test_a_rank_that_left_in_order_is_not_missed(tmp_path: Path) -> None:
    with Watch(Place("7", 0, 1, 2, "n1", tmp_path)):
        pass
    rank = watched(tmp_path, 0)
    beating(tmp_path, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        rank.communicate(timeout=4)
    rank.kill()
    rank.communicate()
