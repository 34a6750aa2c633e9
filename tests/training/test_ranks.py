"""Runs of several ranks under faults, started as srun or torchrun start them (docs/faults.md)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regscale import assemble
from regscale.checkpoint import candidates
from regscale.training import train
from tests.conftest import TINY, MakeConfig
from tests.training import ranks
from tests.training.ranks import Nursery, Ranks, fed, last_step, marker
from tests.training.test_loop import assert_same_run, final_state

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

COMMON = (
    *("engine.kind=ddp", "training.batch_size=12", "training.num_workers=1"),
    *("training.checkpoint_every=7", "training.compare_every=5", "training.hang_seconds=60"),
    *("model.qk_norm=true", "optimizer.learning_rate=1e-4"),  # every weight has a true gradient
    *("optimizer.warmup_steps=4", "optimizer.schedule=cosine", "optimizer.decay_steps=20"),
    "align.vit.stop_step=9",
)
ENGINES = {
    "ddp": ("engine.kind=ddp",),
    "fsdp2": ("engine.kind=fsdp2",),
    "zero1": ("engine.kind=zero", "engine.stage=1"),
    "zero2": ("engine.kind=zero", "engine.stage=2"),
    "zero3": ("engine.kind=zero", "engine.stage=3"),
}
STEPS, LONG = 20, "training.num_steps=100000"
Start = Callable[..., Ranks]


def steps(count: int) -> str:
    return f"training.num_steps={count}"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def start(nursery: Nursery, file: Path) -> Iterator[Start]:
    """`start(run, *overrides, size=2, ...)`; after the test no process of it is left."""
    with ExitStack() as stack:
        yield lambda run, *overrides, **options: stack.enter_context(
            Ranks(nursery, file, run, *COMMON, *overrides, **options)
        )


@pytest.fixture(scope="module")
def whole(nursery: Nursery, file: Path) -> Path:
    """The undisturbed run on two ranks."""
    run = file.parent / "runs" / "whole"
    with Ranks(nursery, file, run, *COMMON, steps(STEPS), before=ranks.watched) as started:
        started.finished()
    assert sorted(fed(run)) == list(range(12 * STEPS))
    return run


@pytest.fixture(scope="module")
def begun(nursery: Nursery, file: Path) -> Path:
    """The same up to the update before its alignment ends."""
    run = file.parent / "runs" / "begun"
    with Ranks(nursery, file, run, *COMMON, steps(8), before=ranks.watched) as started:
        started.finished()
    return run


def assert_close_run(made: Path, want: Path) -> None:
    """fp32: sums in another order, in steps of at most 1e-4."""
    (tensors, losses), (others, other_losses) = final_state(made), final_state(want)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-6, msg=name)
    assert losses.keys() == other_losses.keys()
    for step, figures in losses.items():
        assert figures["learning_rate"] == other_losses[step]["learning_rate"]
        assert figures == pytest.approx(other_losses[step], rel=1e-6, abs=1e-7)


def damage(run: Path, step: int) -> None:
    """Flip a bit of a checkpoint."""
    data = next((run / f"checkpoints/step-{step:08d}").glob("*.safetensors"))
    content = bytearray(data.read_bytes())
    content[-100] ^= 4
    data.write_bytes(content)


def test_a_run_that_goes_on_at_the_same_number_of_ranks_keeps_every_bit(
    start: Start, whole: Path, begun: Path, tmp_path: Path
) -> None:
    """F14: weights, averages, moments, figures of every step, samples and noise, with a resume
    before and after the end of the alignment. F9: the newest checkpoint is damaged."""
    run = shutil.copytree(begun, tmp_path / "parts")
    start(run, steps(14), before=ranks.watched).finished()
    assert fed(run).items() < fed(whole).items()
    shutil.copytree(run / "checkpoints/step-00000014", run / "checkpoints/step-00000016")
    last = start(run, steps(STEPS)).finished()
    assert "damaged checkpoint passed over" in last.said(0)
    assert_same_run(run, whole)


def test_a_run_that_changes_engine_and_number_of_ranks_is_the_same_run(
    start: Start, whole: Path, begun: Path, tmp_path: Path
) -> None:
    """F14."""
    run = shutil.copytree(begun, tmp_path / "parts")
    for kind, size, count in (("fsdp2", 3, 14), ("single", 1, STEPS)):
        options = {"size": size, "before": ranks.watched}
        start(run, f"engine.kind={kind}", steps(count), **options).finished()
    assert fed(run) == fed(whole)
    assert_close_run(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_with_every_engine_a_damaged_checkpoint_costs_nothing_but_time(
    start: Start, tmp_path: Path, engine: str
) -> None:
    """F9 and F14: the run goes on from the one before, to the bits of the undisturbed run."""
    runs = tmp_path / "whole", tmp_path / "parts"
    start(runs[0], *ENGINES[engine], steps(STEPS)).finished()
    start(runs[1], *ENGINES[engine], steps(14)).finished()
    damage(runs[1], 14)
    last = start(runs[1], *ENGINES[engine], steps(STEPS)).finished()
    assert "damaged checkpoint passed over" in last.said(0)
    assert_same_run(*runs)


@pytest.mark.slow
def test_a_run_goes_through_all_engines(start: Start, whole: Path, tmp_path: Path) -> None:
    """F14."""
    run, counts = tmp_path / "parts", (4, 8, 12, 16, STEPS)
    engines = (("ddp", 2), ("zero3", 3), ("fsdp2", 2), ("zero1", 3), ("zero2", 2))
    for (engine, size), count in zip(engines, counts, strict=True):
        options = {"size": size, "before": ranks.watched}
        start(run, *ENGINES[engine], steps(count), **options).finished()
    assert fed(run) == fed(whole)
    assert_close_run(run, whole)


@pytest.mark.parametrize(
    "engine", [n if n == "ddp" else pytest.param(n, marks=pytest.mark.slow) for n in ENGINES]
)
def test_updates_that_stay_not_finite_end_the_run_on_all_ranks(
    start: Start, tmp_path: Path, engine: str
) -> None:
    """F12: the loss of one rank is not a number from the fourth update on."""
    options = (*ENGINES[engine], "training.max_skipped=3", steps(STEPS))
    ended = start(tmp_path / "run", *options, before=ranks.not_finite)
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        assert "step 6: 3 updates in a row were skipped" in ended.said(rank)
        assert re.search(r"found not finite: (loss|grad)\b", ended.said(rank))


def saves(run: Path) -> set[str]:
    """The saves under way."""
    return {path.name for path in (run / "checkpoints").glob(".tmp-*")}


def assert_stopped(ended: Ranks, reason: str) -> int:
    """Every rank with status 0, after a checkpoint of the last update and a marker."""
    assert ended.statuses() == [0, 0], ended.said(0)[-3000:]
    made = marker(ended.run)
    assert made["reason"] == reason
    assert last_step(ended.run) == made["step"]
    assert candidates(ended.run / "checkpoints")[0].name == f"step-{made['step']:08d}"
    assert not saves(ended.run)
    assert not (ended.run / "lease.json").exists()
    return int(made["step"])


def test_a_run_stopped_in_every_way_ends_as_the_undisturbed_one(
    start: Start, tmp_path: Path
) -> None:
    """F10, F21, F22, F23, F30."""
    run, often = tmp_path / "run", ("optimizer.decay_steps=500", "training.keep_last=99")

    first = start(run, *often, LONG, "training.checkpoint_every=1000").trains(3)
    second = start(run, *often, LONG)  # F10
    assert second.statuses() == [2, 2]
    for rank in (0, 1):
        assert "another process writes to this run" in second.said(rank)
        assert f"pid {first.pids[0]} " in second.said(rank)

    (worker,) = first.workers(0)  # F21: one rank, while another waits for its data
    os.kill(worker, signal.SIGSTOP)
    before = -1
    while before != (before := last_step(run)):
        time.sleep(0.5)
    first.send(signal.SIGTERM, 1)
    time.sleep(0.2)
    os.kill(worker, signal.SIGCONT)
    assert 1 <= assert_stopped(first, "SIGTERM") - before <= 2

    third = start(run, *often, LONG, "training.checkpoint_every=5", before=ranks.slow_saves)
    third.until(lambda: saves(run), "a save is under way")
    under_way = saves(run)
    third.send(signal.SIGUSR1, 0, 1)  # F21: all ranks, during a save
    third.until(lambda: saves(run) - under_way, "the last save is under way")
    third.send(signal.SIGTERM, 0, 1)  # F30
    stopped = assert_stopped(third, "SIGUSR1")

    pictures = ("training.preview_every=4", "training.checkpoint_every=1000")
    fourth = start(run, *often, LONG, *pictures, before=ranks.slow_pictures)
    drawn = -(-(stopped + 1) // 4) * 4
    fourth.until((run / f"drawing-{drawn}").exists, "pictures are drawn")
    fourth.send(signal.SIGTERM, 0)  # F21: during pictures, of which another rank is not done
    assert drawn <= assert_stopped(fourth, "SIGTERM") <= drawn + 1

    fifth = start(run, *often, LONG, "training.checkpoint_every=3").trains(drawn + 6)
    fifth.send(signal.SIGKILL, 0)  # F22: the rank at which all meet
    since = time.monotonic()
    assert fifth.statuses() == [-signal.SIGKILL, 1]
    assert time.monotonic() - since < 30
    assert fifth.left() == []  # F23: neither do its workers stay

    end = steps(last_step(run) + 3)
    start(run, *often, end).finished()
    start(tmp_path / "whole", *often, end).finished()
    assert_same_run(run, tmp_path / "whole")
    numbers = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_takes_the_others_along(
    start: Start, tmp_path: Path, engine: str, victim: int
) -> None:
    """F22, where weights lie on the lost rank."""
    run = start(tmp_path / "run", *ENGINES[engine], LONG).trains(9)
    run.send(signal.SIGKILL, victim)
    ended = run.statuses(seconds=30)
    assert (ended[victim], ended[1 - victim]) == (-signal.SIGKILL, 1)
    assert run.left() == []


@pytest.mark.parametrize("before", [ranks.broken_set_up, ranks.broken_first])
def test_a_fault_of_one_rank_before_the_first_step_is_told_by_all(
    start: Start, tmp_path: Path, before: ranks.Before
) -> None:
    """F25."""
    ended = start(tmp_path / "run", LONG, before=before)
    assert ended.statuses() == [1, 1]
    for rank in (0, 1):
        assert "Traceback (most recent call last)" in ended.said(rank)
        assert "in boom" in ended.said(rank)
        assert "ValueError: boom" in ended.said(rank)


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.learning_rate=2e-4",
        pytest.param("engine.kind=fsdp2", marks=pytest.mark.slow),
        pytest.param("model.hidden_size=64", marks=pytest.mark.slow),
    ],
)
def test_ranks_of_different_configs_refuse_each_other(
    start: Start, tmp_path: Path, change: str
) -> None:
    """F27."""
    ended = start(tmp_path / "run", LONG, own={1: (change,)})
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        said = ended.said(rank)
        assert "the processes of this run: were started differently" in said
        assert re.search(r"config is \w+ on rank 0 and \w+ on rank 1", said)
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_port_in_use_is_told_with_what_to_do(start: Start, tmp_path: Path) -> None:
    """F26: rank 0 says so and ends at once; srun, or torchrun, then ends the others."""
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", 0))
        other.listen()
        port = int(other.getsockname()[1])
        ended = start(tmp_path / "run", LONG, port=port)
        assert ended.statuses(0) == [2]
        ended.send(signal.SIGKILL, 1)
    message = f"error: 127.0.0.1:{port}: rank 0 of 2 cannot meet the others there; found "
    assert message in ended.said(0)
    assert "MASTER_PORT chooses another port" in ended.said(0)
    assert "Traceback" not in ended.said(0)


def test_a_batch_that_does_not_divide_is_refused_before_the_start(
    start: Start, tmp_path: Path
) -> None:
    """F20."""
    ended = start(tmp_path / "run", LONG, "training.batch_size=9")
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        message = "training.batch_size: divides by the number of processes, 2; found 9"
        assert message in ended.said(rank)
    assert not (tmp_path / "run").exists()


def test_no_rank_resumes_as_another_run(start: Start, begun: Path, tmp_path: Path) -> None:
    """F28."""
    run = shutil.copytree(begun, tmp_path / "parts")
    ended = start(run, steps(STEPS), "seed=1")
    assert ended.statuses() == [2, 2]
    for rank in (0, 1):
        assert "was made with another seed; found seed: 0 -> 1" in ended.said(rank)
        assert "Traceback" not in ended.said(rank)


def test_what_may_change_is_logged_and_a_field_of_later_has_its_default(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """F28: also for a checkpoint of a program that did not know a setting yet."""
    job = assemble.job(tiny("training.num_steps=3"))
    values = {name: dict(job.values[name]) for name in ("training", "model")}
    del values["training"]["compare_every"], values["model"]["qk_norm"]
    train(replace(job, values={**job.values, **values}))
    caplog.set_level("INFO")
    assert train(assemble.job(tiny("optimizer.learning_rate=2e-3"))).step == 6
    changes = [x for x in caplog.messages if x.startswith("resuming with a changed setting: ")]
    assert [change.partition(": ")[2] for change in changes] == [
        "optimizer.learning_rate: 0.001 -> 0.002",
        "training.num_steps: 3 -> 6",
    ]


class Launched:
    """The run under torchrun, which gives its ranks sessions of their own."""

    def __init__(self, file: Path, run: Path, *, restarts: int = 0) -> None:
        self.run, self._file = run, run.with_suffix(".said")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--max-restarts={restarts}", "--nproc-per-node=2"]
        arguments = ["-m", "regscale.train", str(file)]
        options = [f"runs={run.parent}", f"name={run.name}", *COMMON, LONG]
        with self._file.open("w") as said:
            self.process = subprocess.Popen(
                [*command, *arguments, *options],
                stderr=said,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self.ranks: list[int] = []
        self.trains(3)

    def trains(self, step: int) -> None:
        """Wait until that update is reported, by ranks that are not those of before."""
        before, deadline = self.ranks, time.monotonic() + 200
        while last_step(self.run) < step or set(before) & set(self._children()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        self.ranks = self._children()

    def _children(self) -> list[int]:
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for held in lists for pid in held.read_text().split()]

    def said(self) -> str:
        return self._file.read_text()[-5000:]

    def left(self) -> list[int]:
        deadline = time.monotonic() + 60
        while (alive := ranks.running(self.ranks)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for pid in ranks.running(self.ranks):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_ranks_whose_launcher_is_gone_save_and_end(file: Path, tmp_path: Path) -> None:
    """F21, F23: torchrun knows no SIGUSR1, dies of it and leaves its ranks to themselves."""
    with Launched(file, tmp_path / "run") as launched:
        assert len(launched.ranks) == 2
        launched.process.send_signal(signal.SIGUSR1)
        assert launched.process.wait(10) == -signal.SIGUSR1
        before = last_step(launched.run)
        assert launched.left() == []
        made = marker(launched.run)
        assert made["reason"] == "the launcher is gone"
        assert 0 <= made["step"] - before <= 3
        name = f"step-{made['step']:08d}"
        assert candidates(launched.run / "checkpoints")[0].name == name


@pytest.mark.slow
def test_a_launcher_hands_sigterm_on(file: Path, tmp_path: Path) -> None:
    """F21: torchrun itself ends with 1 and its own traceback; the marker tells."""
    with Launched(file, tmp_path / "run") as launched:
        launched.process.send_signal(signal.SIGTERM)
        assert launched.process.wait(60) == 1
        assert launched.left() == []
        made = marker(launched.run)
        assert made["reason"] == "SIGTERM"
        assert made["step"] == last_step(launched.run)


@pytest.mark.slow
def test_a_launcher_ends_the_run_where_a_rank_is_killed(file: Path, tmp_path: Path) -> None:
    """F22, F23."""
    with Launched(file, tmp_path / "run") as launched:
        os.kill(launched.ranks[1], signal.SIGKILL)
        assert launched.process.wait(60) == 1
        assert launched.left() == []
        assert not (launched.run / "marker.json").exists()


@pytest.mark.slow
def test_a_launcher_that_starts_ranks_again_lets_them_meet(file: Path, tmp_path: Path) -> None:
    """F22: torchrun keeps the store of the ranks before, and all that they wrote into it."""
    with Launched(file, tmp_path / "run", restarts=1) as launched:
        os.kill(launched.ranks[0], signal.SIGKILL)
        launched.trains(last_step(launched.run) + 8)
        launched.process.send_signal(signal.SIGTERM)
        launched.process.wait(60)
        assert launched.left() == []
        assert marker(launched.run)["reason"] == "SIGTERM"
