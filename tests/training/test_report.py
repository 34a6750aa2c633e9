"""What is reported: lines, metrics.jsonl, and a wandb that cannot stop training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from regscale import assemble
from regscale.cluster import join
from regscale.parallel import StepResult
from regscale.training import train
from regscale.training.report import line
from regscale.training.window import Window
from tests.conftest import MakeConfig


def test_a_line_reads_as_documented() -> None:
    figures = {"loss": 0.73124, "skipped": 0.0, "learning_rate": 1e-4, "images_per_second": 7912.4}
    assert line(12400, figures) == "step 12,400  loss 0.7312  lr 1.00e-04  7,912 img/s"
    assert "skipped 3" in line(1, {"skipped": 3.0})


def test_a_window_gives_means_and_counts_skipped_updates() -> None:
    window = Window(("a", "b"), join("cpu"))
    for value, good in ((1.0, True), (3.0, False), (5.0, False)):
        result = StepResult(torch.tensor(good), torch.tensor(1.0))
        window.add([torch.tensor(value), torch.tensor(2 * value)], result)
    assert window.read() == {"a": 3.0, "b": 6.0, "skipped": 2.0}
    assert window.in_a_row == 2
    window.add([torch.tensor(7.0)] * 2, StepResult(torch.tensor(True), torch.tensor(1.0)))
    assert window.read() == {"a": 7.0, "b": 7.0, "skipped": 0.0}
    assert window.in_a_row == 0


def test_a_window_survives_a_checkpoint_to_the_bit() -> None:
    first = Window(("a",), join("cpu"))
    first.add([torch.tensor(1 / 3)], StepResult(torch.tensor(False), torch.tensor(1.0)))
    second = Window(("a",), join("cpu"))
    second.restore(json.loads(json.dumps(first.state())))
    for window in (first, second):
        window.add([torch.tensor(1 / 7)], StepResult(torch.tensor(True), torch.tensor(1.0)))
    assert first.read() == second.read()


def test_every_line_of_metrics_is_json_and_steps_are_told_once(tiny: MakeConfig) -> None:
    for steps in (3, 6):
        job = assemble.job(tiny(f"training.num_steps={steps}"))
        train(job)
    lines = [json.loads(x) for x in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    names = {"loss", "denoise", "tokens_vit", "align_vit", "grad", "skipped", "learning_rate"}
    assert all(names <= x.keys() for x in lines)


def test_pictures_are_drawn_on_the_way(tiny: MakeConfig) -> None:
    job = assemble.job(tiny("training.preview_every=3"))
    before = train(job)
    assert before.step == 6
    names = sorted(p.name for p in (job.folder / "samples").iterdir())
    assert names == ["step-00000003.png", "step-00000006.png"]


def test_wandb_without_a_key_is_offline_and_goes_on_under_one_id(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for steps in (3, 6):
        job = assemble.job(tiny("training.wandb=test", f"training.num_steps={steps}"))
        assert train(job).step == steps
    identity = (job.folder / "wandb-id").read_text()
    runs = [p.name for p in (job.folder / "wandb").glob("offline-run-*")]
    assert len(runs) >= 1
    assert all(name.endswith(identity) for name in runs)


def test_a_wandb_that_fails_never_stops_training(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    class Broken:
        def log(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("the network is down")

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    job = assemble.job(tiny("training.wandb=test"))
    assert train(job).step == 6
    assert caplog.text.count("wandb failed and is left alone") == 1
