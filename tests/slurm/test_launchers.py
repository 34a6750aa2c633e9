"""The other launchers as shipped: each trains, draws or judges on two nodes of two tasks."""

import os
from pathlib import Path

import pytest

from regscale.prepare.__main__ import main as prepare
from regscale.slurm.history import events
from tests.data.test_shards import source
from tests.slurm.conftest import ENDLESS, Site
from tests.slurm.lab import CONTROL

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]

FOUR = ("--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2")
IMAGENET_ON_DIGITS = (
    *("device=cpu", "data.kind=digits", "autoencoder.kind=identity", "autoencoder.channels=1"),
    *("conditioning.num_classes=10", "conditioning.names=digits"),
    *("targets.dinov2.kind=digits_vit", "align.dinov2.depth=1", "align.dinov2.projector=16"),
    *("model.depth=2", "model.hidden_size=32", "model.num_heads=4"),
    *("engine.compile=false", "engine.precision=fp32", "training.batch_size=8"),
    *("training.num_steps=3", "training.num_workers=0", "training.preview_every=0"),
)
SMALL_SHAPECAPS = (
    *("engine.kind=fsdp2", "model.depth=2", "model.hidden_size=32", "model.num_heads=2"),
    *("align.shapes_vit.depth=1", "align.shapes_vit.projector=16"),
    *("training.batch_size=8", "training.num_steps=6", "training.log_every=1"),
)
NUM_PROMPTS = 320


def test_the_imagenet_launcher_runs_on_two_nodes_of_two_gpus(site: Site) -> None:
    job = site.submit("imagenet_sit_xl", *IMAGENET_ON_DIGITS, "name=xl", options=FOUR)
    assert "done: finished at step 3" in site.ends(job)
    assert site.lab.job(job)["TresPerNode"] == "gres:gpu:2"


def test_torchrun_starts_the_tasks_where_a_site_allows_one_a_node(site: Site) -> None:
    one = ("--ntasks-per-node=1", "--cpus-per-task=4")
    job = site.digits("name=by torchrun", ENDLESS, options=one, REGSCALE_TORCHRUN="2")
    start = site.trains(job, "by torchrun")
    assert (start["nodes"], start["ranks"]) == ("n[1-2]", 4)
    site.lab.on(CONTROL, "scancel", "--signal=TERM", job)
    assert "done: ended by SIGTERM at step " in site.ends(job)


@pytest.fixture(scope="module")
def shapecaps(site: Site) -> str:
    """The job that trains ShapeCaps."""
    arguments = ("configs/shapecaps.yaml", *SMALL_SHAPECAPS, "name=shapes")
    job = site.submit("t2i", *arguments, options=FOUR)
    site.ends(job)
    return job


def test_the_text_launcher_trains_shapecaps(shapecaps: str, site: Site) -> None:
    assert "done: finished at step 6" in site.output(shapecaps)
    (start, end) = events(site.run("shapes"))
    assert (start["nodes"], start["ranks"], end["verdict"]) == ("n[1-2]", 4, "done")
    assert len((site.run("shapes") / "metrics.jsonl").read_text().splitlines()) == 6


def test_drawing_that_is_warned_goes_on_where_it_was(shapecaps: str, site: Site) -> None:
    prompts, out = site.folder / "two words.txt", site.folder / "two words"
    prompts.write_text("a red circle\n" * NUM_PROMPTS)
    options = ["--checkpoint", "runs/shapes", "--prompts", prompts.name, "--out", out.name]
    job = site.submit("sample", *options, "--batch-size=4", options=FOUR)
    site.lab.until(lambda: len(drawn(out)) > 0, "it draws", seconds=120)
    site.lab.on(CONTROL, "scancel", "--batch", "--signal=USR1", job)
    site.lab.wait(job, lambda facts: facts["Restarts"] == "1", "the job is requeued")
    before = drawn(out)
    assert 0 < len(before) < NUM_PROMPTS
    output = site.ends(job)
    after = drawn(out)
    assert sorted(after) == [f"{index:06d}.png" for index in range(NUM_PROMPTS)]
    assert before.items() <= after.items(), "what was drawn is not drawn again"
    assert output.count("requeue: stopped in time\n") == 1
    assert f"{NUM_PROMPTS - len(before)} of {NUM_PROMPTS} images are missing" in output
    assert "Traceback" not in output


def drawn(folder: Path, end: str = ".png") -> dict[str, int]:
    """The time of each numbered file of a set, by default of pictures."""
    paths = os.scandir(folder) if folder.is_dir() else []
    named = [path for path in paths if path.name[0] in "0123456789" and path.name.endswith(end)]
    return {path.name: path.stat().st_mtime_ns for path in named}


def test_preparation_that_is_warned_goes_on_where_it_was(site: Site) -> None:
    out, wanted = site.folder / "scenes", ("--num-samples=40000", "--shard-mb=0.2", "--workers=1")
    job = site.submit("prepare", "shapecaps", "--export", out.name, *wanted, options=FOUR)
    site.lab.until(lambda: drawn(out, ".tar.index"), "a shard is whole", seconds=120)
    site.lab.on(CONTROL, "scancel", "--batch", "--signal=USR1", job)
    site.lab.wait(job, lambda facts: facts["Restarts"] == "1", "the job is requeued")
    before = drawn(out, ".tar.index")
    output = site.ends(job)
    after = drawn(out, ".tar.index")
    assert 0 < len(before) < len(after)
    assert before.items() <= after.items(), "what was packed is not packed again"
    assert output.count("requeue: stopped in time\n") == 1
    assert "Traceback" not in output
    prepare(["verify", str(out), "--workers", "1"])
    assert source(out, "captions").num_samples == 40_000


def test_an_evaluation_is_of_all_tasks(shapecaps: str, site: Site) -> None:
    suite = ["--suite", "shapecaps", "num_prompts=4", "kinds=[single_object, colors]"]
    job = site.submit("evaluate", "runs/shapes", *suite, options=FOUR)
    output = site.ends(job)
    assert "ShapeCaps seen loose" in output
    assert "\ndone: " in output
    (folder,) = (site.run("shapes") / "evaluations").iterdir()
    assert (folder / "evaluation.json").exists()
    assert len(list((folder / "images").glob("*.png"))) >= 8
