"""A training process under signals: what it leaves, and that the next one goes on to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regscale import assemble
from regscale.training import train
from tests.conftest import MakeConfig
from tests.training.test_loop import assert_same_run

STEPS = 400


def command(file: Path, runs: Path, *overrides: str) -> list[str]:
    options = [f"runs={runs}", "name=killed", f"training.num_steps={STEPS}", *overrides]
    return [sys.executable, "-m", "regscale.train", str(file), *options]


def start(file: Path, runs: Path, *overrides: str) -> subprocess.Popen[str]:
    """A training process, some steps after its start."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(file, runs, *overrides),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    metrics = runs / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "training did not start"
        time.sleep(0.02)
    return process


def finish(file: Path, runs: Path, *overrides: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(file, runs, *overrides), check=True, env=environment)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_group_means_a_checkpoint_a_marker_and_status_0(
    tiny_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Schedulers and terminals signal the loader's workers too."""
    process = start(tiny_file, tmp_path / "runs", "training.num_workers=2")
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 0
    folder = tmp_path / "runs" / "killed"
    marker = json.loads((folder / "marker.json").read_text())
    assert marker["reason"] == number.name
    assert 5 <= marker["step"] < STEPS
    assert (folder / "checkpoints" / f"step-{marker['step']:08d}" / "manifest.json").exists()
    assert not (folder / "lease.json").exists()


def test_a_run_killed_at_random_steps_ends_as_the_undisturbed_one(
    tiny: MakeConfig, tiny_file: Path, tmp_path: Path
) -> None:
    runs, every = tmp_path / "runs", "training.checkpoint_every=7"
    for seed in range(2):
        process = start(tiny_file, runs, every)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        process.kill()
        process.wait()
    finish(tiny_file, runs, every)
    whole = assemble.job(tiny("name=whole", f"training.num_steps={STEPS}", every))
    train(whole)
    assert_same_run(whole.folder, runs / "killed")


@pytest.mark.slow  # two ranks are refused in test_ranks_stop
def test_a_second_process_on_one_run_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    process = start(tiny_file, tmp_path / "runs", "training.num_steps=100000")
    second = subprocess.run(
        command(tiny_file, tmp_path / "runs"), capture_output=True, text=True, check=False
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert second.returncode == 2
    assert "error: " in second.stderr
    assert str(process.pid) in second.stderr


def test_a_fault_in_a_loader_process_is_one_message_and_status_2(
    tiny_file: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(b"no image")
    overrides = ["data.kind=image_folder", f"data.root={root}", "data.size=8"]
    done = subprocess.run(
        command(tiny_file, tmp_path / "runs", *overrides, "training.num_workers=2"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "0.png: cannot be read as an image" in done.stderr
    assert "Traceback" not in done.stderr
