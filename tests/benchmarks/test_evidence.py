"""The study of the entangled token at tiny size: it trains, resumes, refuses and reports."""

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import _evidence_report, _evidence_tables, evidence
from benchmarks._evidence_figures import Result, best, changes, mean_of, read, sign_flip
from benchmarks._evidence_run import Launcher, make
from benchmarks._evidence_study import ARMS, CHANGES, MEAN, SIXTEENTHS, Run, Study, read_study
from regscale import assemble
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.evaluate.__main__ import main as evaluate
from regscale.evaluation.rates import wilson
from regscale.evaluation.shapecaps import Cell, Table
from regscale.prepare.__main__ import main as prepare
from regscale.recipe import RunConfig
from regscale.training import train

TINY = (
    "training.num_steps=2",
    "training.batch_size=4",
    "training.log_every=1",
    "model.depth=1",
    "model.hidden_size=24",
    "align.shapes_vit.depth=1",
    "align.shapes_vit.projector=8",
    "sampling.solver.num_steps=2",
    "device=cpu",
)


class InProcess:
    """Runs commands without a process, and counts them; `broken` names a run that fails."""

    def __init__(self, broken: str = "") -> None:
        self.calls: Counter[str] = Counter()
        self.broken = broken

    def __call__(self, command: Sequence[str], path: Path) -> int:
        module, *arguments = command
        self.calls[module] += 1
        if self.broken and f"name={self.broken}" in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("first\nno space left\n")
            return 2
        if module == "regscale.train":
            train(assemble.job(load(RunConfig, Path(arguments[0]), arguments[1:])))
        else:
            {"regscale.evaluate": evaluate, "regscale.prepare": prepare}[module](arguments)
        return 0

    def stop(self) -> None:
        """Nothing goes on."""


def tiny(runs: Path) -> Study:
    return Study(runs=runs, overrides=TINY, num_prompts=2, seeds=(0,))


def command(runs: Path, *more: str) -> list[str]:
    return ["run", "--runs", str(runs), "--seeds", "0", "--num-prompts", "2", *more, *TINY]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of which two runs are done: flow matching, and both."""
    study = tiny(tmp_path_factory.mktemp("evidence"))
    study.open()
    some = [run for run in study.arms() if run.arm in ("flow", "both")]
    launch = InProcess()
    assert make(study, some, launch, parallel=1, num_threads=None) == []
    assert launch.calls == {"regscale.train": 2, "regscale.evaluate": 4}
    return study.runs


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "docs" / "page.md"
    path.parent.mkdir()
    path.write_text("# Above\n<!-- evidence: begin -->\nold\n<!-- evidence: end -->\nbelow\n")
    return path


def report(runs: Path, page: Path, *seeds: str) -> str:
    images = page.parent / "images"
    places = ["--runs", str(runs), "--page", str(page), "--images", str(images)]
    evidence.main(["report", *places, "--seeds", *(seeds or "0")])
    return page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["token", "both"])
def test_each_ablation_is_a_run_of_its_own(base: str, tmp_path: Path) -> None:
    study = Study(runs=tmp_path)
    own, *changed = study.ablations(base)
    assert own.name == f"{base}-0"
    assert len(changed) == len(CHANGES)
    configs = [study.configured(run) for run in (own, *changed)]
    assert len({each.name for each in configs}) == len(configs)
    for config in configs:
        assert len(config.entangled) == 1
        assert len(config.aligned) == (base == "both")


def test_a_run_that_was_stopped_is_left_out_named_and_resumed(copied: Path, page: Path) -> None:
    study = tiny(copied)
    flow, _, _, both, _ = study.arms()
    marker = study.folder(both) / "marker.json"
    marker.write_text(json.dumps({"step": 1, "samples": 4, "reason": "SIGTERM"}))
    text = report(copied, page)
    assert "* both-0: stopped at step 1, SIGTERM" in text
    assert "* token-0: not yet run" in text
    assert "| flow, seed 0 |" in text
    assert "| both, seed 0 |" not in text
    launch = InProcess()
    assert make(study, [flow, both], launch, parallel=2, num_threads=None) == []
    assert launch.calls == {"regscale.train": 1}, "what is done is not done again"
    assert isinstance(read(study, both), Result)


def test_runs_of_different_lengths_are_not_compared(copied: Path, page: Path) -> None:
    marker = copied / "flow-0" / "marker.json"
    marker.write_text(json.dumps({"step": 1, "samples": 4, "reason": "finished"}))
    with pytest.raises(RegscaleError, match=r"different lengths.*found flow-0: 1, both-0: 2"):
        report(copied, page)


def test_a_run_that_fails_is_named_and_the_others_go_on(copied: Path, page: Path) -> None:
    study = tiny(copied)
    flow, _, token, both, _ = study.arms()
    shutil.rmtree(study.place(both, "empty"))
    assert "* both-0: not drawn: empty" in report(copied, page)
    launch = InProcess(broken="token-0")
    (failure,) = make(study, [token, flow, both], launch, parallel=1, num_threads=None)
    assert "status 2; no space left" in failure
    assert launch.calls == {"regscale.train": 1, "regscale.evaluate": 1}


def test_the_report_has_every_number_with_its_interval_and_count(runs: Path, page: Path) -> None:
    text = report(runs, page)
    assert text.startswith("# Above\n")
    assert text.endswith("<!-- evidence: end -->\nbelow\n")
    assert "old" not in text
    study = read_study(runs, [0])
    found = read(study, study.arms()[0])
    assert isinstance(found, Result)
    cell = found.own.cells["colors", "held_out"]
    assert cell.number == 2
    assert f"{wilson(cell.loose, cell.number)}, n 2" in text
    for name in ("arms", "loss"):
        assert f"](images/evidence-{name}.png)" in text
        assert (page.parent / "images" / f"evidence-{name}.png").exists()


def test_seconds_are_those_of_the_reported_rates(runs: Path) -> None:
    study = read_study(runs, [0])
    found = read(study, study.arms()[0])
    assert isinstance(found, Result)
    lines = (runs / "flow-0" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["images_per_second"] for line in lines]
    assert found.seconds == pytest.approx(sum(4 / rate for rate in rates))
    assert found.steps == 2
    assert "threads" in found.machines[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_trains_all_that_is_missing_and_reports_it(copied: Path, page: Path) -> None:
    launch = InProcess()
    evidence.main(command(copied), launch)
    missing = len(ARMS) + 1 - 2  # with the control, without what is done
    assert launch.calls["regscale.train"] == missing + len(CHANGES)
    assert launch.calls["regscale.prepare"] == 1
    parts = {}
    for run in tiny(copied).arms():
        config = tiny(copied).configured(run)
        parts[run.name] = (len(config.entangled), len(config.aligned), config.data.captions)
    assert parts == {
        "flow-0": (0, 0, "own"),
        "alignment-0": (0, 1, "own"),
        "token-0": (1, 0, "own"),
        "both-0": (1, 1, "own"),
        "shuffled-0": (1, 1, "shuffled"),
    }
    text = report(copied, page)
    assert "Left out" not in text
    for name in (*CHANGES, "token guidance 1", "token guidance 1.5"):
        assert f"| {name} |" in text


def test_other_settings_are_refused_in_the_same_folder(runs: Path) -> None:
    with pytest.raises(RegscaleError, match="is of a study with other settings"):
        evidence.main([*command(runs), "training.num_steps=3"], InProcess())


def test_ablations_wait_for_all_seeds_of_the_arms_with_a_token(runs: Path) -> None:
    arguments = ["--seeds", "0", "1", "--part", "ablations"]
    with pytest.raises(RegscaleError, match=r"no best arm.*; both-1: not yet run"):
        evidence.main([*command(runs)[:3], *arguments, "--num-prompts", "2", *TINY], InProcess())


def test_a_page_without_a_place_and_a_folder_without_a_study_are_told(
    runs: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(RegscaleError, match="has no place for the report"):
        report(runs, page)
    with pytest.raises(RegscaleError, match="does not tell of a study"):
        report(tmp_path, page)


def made(study: Study, arm: str, seed: int, right: int) -> Result:
    """A result without a run: `right` of 100 seen pictures of colours."""
    return of_run(next(run for run in study.arms() if (run.arm, run.seed) == (arm, seed)), right)


def of_run(run: Run, right: int) -> Result:
    """The same for each of its evaluations."""
    cell = Cell(number=100, loose=right, strict=right, shuffled=3)
    tables = {name: Table({("colors", "seen"): cell}) for name in run.drawings}
    return Result(
        run=run, steps=2, seconds=60.0, machines=("a",), drawings=tables, curve=[(1, 0.5)]
    )


def test_pairs_are_of_the_same_seed_and_the_best_has_a_token() -> None:
    study = Study(runs=Path("nowhere"))
    right = {"flow": (90, 91, 95), "alignment": (50,) * 3, "token": (60, 60, 60), "both": (70,) * 3}
    results = [made(study, arm, seed, right[arm][seed]) for arm in ARMS for seed in range(3)]
    assert best(results, study.seeds) == "both"
    assert best(results[:-1], study.seeds) is None
    table = _evidence_tables.paired(results)
    assert "| both - flow | seen | -0.200 [-0.306, -0.090]; -0.210 [" in table
    assert "0.25 (least possible 0.25)" in table
    assert "held out" not in table


def test_many_tokens_are_compared_with_one_and_all_else_with_the_run_itself() -> None:
    base, *others = Study(runs=Path("nowhere")).ablations("both")
    right = {MEAN: 60, SIXTEENTHS: 70}
    rows = changes(of_run(base, 50), [of_run(run, right.get(run.arm, 40)) for run in others])
    names = ["none: both", "token guidance 1", "token guidance 1.5"]
    assert [row.name for row in rows[:3]] == names
    table = _evidence_tables.ablations(rows)
    assert f"| {MEAN} | {wilson(60, 100)}, n 100 |  | none: both | +0.100 [" in table
    assert f"| {SIXTEENTHS} | {wilson(70, 100)}, n 100 |  | {MEAN} | +0.100 [" in table
    assert "| token guidance 1 | 0.500" in table
    alone = _evidence_tables.ablations([row for row in rows if row.name != MEAN])
    assert f"| {SIXTEENTHS} | {wilson(70, 100)}, n 100 |  | {MEAN} |  |" in alone


def test_the_report_tells_how_far_the_base_lies_from_the_mean_of_its_seeds() -> None:
    base = made(Study(runs=Path("nowhere")), "both", 0, 20)
    text = _evidence_report.spread(base, [0.2, 0.25, 0.3])
    assert "differ by up to 0.100" in text
    assert "-0.050 from their mean of 0.250" in text
    assert "one seed cannot tell" in _evidence_report.spread(base, [0.2])


def test_intervals_over_seeds_are_students() -> None:
    # Of 1, 2, 3: mean 2, deviation 1, and t of 2 degrees of freedom 4.3027 (any table of it).
    found = mean_of([1.0, 2.0, 3.0])
    assert found is not None
    assert found == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert mean_of([1.0]) is None


def test_signs_alone_give_the_exact_p() -> None:
    assert sign_flip([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip([0.1] * 6) == 2 / 2**6
    assert sign_flip([0.1, -0.1]) == 1


def test_a_launched_run_has_its_threads_and_a_log(tmp_path: Path) -> None:
    told = "import os; print('threads', os.environ['OMP_NUM_THREADS'])"
    log = tmp_path / "a" / "b.log"
    assert Launcher(3)(["timeit", "-n1", "-r1", told], log) == 0
    assert log.read_text().startswith("threads 3\n")


def test_stopping_ends_what_runs_and_starts_nothing_else(tmp_path: Path) -> None:
    launch, log = Launcher(None), tmp_path / "log"
    words = "import sys, time; print('begun'); sys.stdout.flush(); time.sleep(200)"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(launch, ["timeit", "-n1", "-r1", words], log)
        while not (log.exists() and log.read_text()):
            time.sleep(0.02)
        launch.stop()
        assert running.result(timeout=60) == -signal.SIGTERM
    assert launch(["platform"], tmp_path / "other") == 1
    assert not (tmp_path / "other").exists()
