"""Evaluation on the way: it changes no bit, its best checkpoint stays, engines measure alike."""

import json
import signal
from pathlib import Path

import pytest
import torch

from regscale import assemble
from regscale.checkpoint import Reader, candidates
from regscale.cluster import Cluster
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.evaluation.validation import Validation
from regscale.recipe import RunConfig
from regscale.training import train
from regscale.training.stop import StopFlag
from tests.conftest import MakeConfig
from tests.processes import Pool

EVERY = "evaluation.evaluate_every=2"
JUDGE = ["evaluation.validation.judge.kind=digits", "evaluation.validation.judge.split=judge"]
SMALL = ["evaluation.suites.small.kind=digits", "evaluation.suites.small.num_samples=10"]
FEW = "evaluation.num_validation=16"


def figures_of(folder: Path) -> dict[int, dict[str, float]]:
    """By step, of the lines that an evaluation wrote."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {x.pop("step"): x for x in lines if "judge/denoise" in x}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    reader = Reader(candidates(folder / "checkpoints")[0])
    return {name: reader.tensor(name) for name in reader.names()}


def test_an_evaluation_changes_no_bit_of_the_run(tiny: MakeConfig) -> None:
    plain, judged = [
        assemble.job(tiny(f"name={name}", *more))
        for name, more in (("plain", []), ("judged", [EVERY, FEW, *JUDGE, *SMALL]))
    ]
    for job in (plain, judged):
        train(job)
    before, after = weights_of(plain.folder), weights_of(judged.folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = figures_of(judged.folder)
    assert sorted(found) == [2, 4, 6]
    assert {"judge/denoise", "judge/denoise@0.06", "small/FD-digits"} <= found[2].keys()
    assert (judged.folder / "evaluations" / "during-00000004" / "small").is_dir()


def test_a_resumed_run_measures_the_same(tiny: MakeConfig) -> None:
    for steps in (3, 6):
        job = assemble.job(tiny("name=parts", f"training.num_steps={steps}", EVERY, FEW, *JUDGE))
        train(job)
    whole = assemble.job(tiny("name=whole", EVERY, FEW, *JUDGE))
    train(whole)
    assert figures_of(job.folder) == figures_of(whole.folder)


def test_the_best_checkpoint_is_saved_and_stays(tiny: MakeConfig) -> None:
    """With a learning rate that drives the loss up, the first evaluation is the best."""
    worse = ["optimizer.learning_rate=1.0", "ema.decays=[0.1]", "training.keep_every=0"]
    often = ["training.checkpoint_every=100", "training.keep_last=1", "training.num_steps=5"]
    job = assemble.job(tiny(*worse, *often, EVERY, FEW, *JUDGE))
    train(job)
    found = figures_of(job.folder)
    assert found[2]["judge/denoise"] < found[4]["judge/denoise"]
    best = json.loads((job.folder / "best.json").read_text())
    assert best == {
        "figure": "judge/denoise", "value": found[2]["judge/denoise"], "step": 2
    }  # fmt: skip
    assert [each.name for each in candidates(job.checkpoints)] == ["step-00000005", "step-00000002"]


def test_a_signal_during_an_evaluation_ends_the_run_behind_it(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F21. The second evaluation is not the best, so its step is saved for the signal alone."""
    measure, calls = Validation.__call__, []

    def signalled(self: Validation, model: torch.nn.Module) -> dict[str, float]:
        calls.append(self)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return measure(self, model)

    monkeypatch.setattr(Validation, "__call__", signalled)
    often = ["training.checkpoint_every=100", "training.num_steps=100"]
    worse = ["optimizer.learning_rate=1.0", "ema.decays=[0.1]"]
    job = assemble.job(tiny(*worse, *often, EVERY, FEW, *JUDGE))
    with StopFlag() as stop:
        outcome = train(job, stop)
    assert (outcome.step, outcome.reason) == (4, "SIGTERM")
    assert [each.name for each in candidates(job.checkpoints)] == ["step-00000004", "step-00000002"]
    assert sorted(figures_of(job.folder)) == [2, 4]
    assert json.loads((job.folder / "marker.json").read_text())["reason"] == "SIGTERM"


def trained_by(cluster: Cluster, file: str, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    train(assemble.job(load(RunConfig, Path(file), overrides)))


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero"])
def test_figures_do_not_depend_on_the_engine(
    tiny: MakeConfig, tiny_file: Path, tmp_path: Path, pool: Pool, engine: str
) -> None:
    alone = assemble.job(tiny("name=alone", EVERY, FEW, *JUDGE, *SMALL))
    train(alone)
    kind = [f"runs={tmp_path / 'runs'}", f"name={engine}", f"engine.kind={engine}"]
    pool.run(2, trained_by, str(tiny_file), [*kind, EVERY, FEW, *JUDGE, *SMALL])
    found, wanted = figures_of(tmp_path / "runs" / engine), figures_of(alone.folder)
    assert found.keys() == wanted.keys()
    for step, figures in wanted.items():
        assert found[step] == pytest.approx(figures, rel=1e-4)  # a picture's bytes may round apart


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([EVERY], "one at least"),
        ([EVERY, *JUDGE, "evaluation.best=FID"], "is a figure of a suite"),
        (
            [EVERY, *JUDGE, "evaluation.best=judge/nothing"],
            "of this evaluation",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_told(tiny: MakeConfig, wrong: list[str], says: str) -> None:
    with pytest.raises(RegscaleError, match=says):
        train(assemble.job(tiny(*wrong)))
