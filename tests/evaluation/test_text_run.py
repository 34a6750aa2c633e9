"""Suites of captions on a run that reads text: pictures drawn, judged, with all of their origin."""

import json
from pathlib import Path

import pytest

from regscale import assemble
from regscale.config import load
from regscale.evaluate.__main__ import main
from regscale.evaluation import report
from regscale.recipe import RunConfig
from regscale.training import train
from tests.evaluation.test_extractors import clip, extractor  # noqa: F401

SMALL = ["model.depth=2", "model.hidden_size=32", "model.num_heads=2", "align.shapes_vit.depth=1"]
BRIEF = ["training.num_steps=1", "training.batch_size=4", "sampling.solver.num_steps=2"]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = [f"runs={tmp_path_factory.mktemp('text')}", "device=cpu", *SMALL, *BRIEF]
    job = assemble.job(load(RunConfig, Path("configs/shapecaps.yaml"), options))
    train(job)
    return job.folder


def test_coco_captions_are_drawn_and_scored_by_clip(
    text_run: Path,
    clip: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    texts = ["a red circle", "a blue cross", "a diamond"]
    notes = [{"image_id": i, "id": i, "caption": text} for i, text in enumerate(texts)]
    (tmp_path / "coco.json").write_text(json.dumps({"annotations": notes}))
    (tmp_path / "ids.txt").write_text("2\n0\n")
    asked = [f"captions={tmp_path}/coco.json", f"ids={tmp_path}/ids.txt"]
    judged = ["extractors.clip.kind=clip", f"extractors.clip.model={clip}"]
    out = tmp_path / "out"
    main([str(text_run), "--suite", "t2i", *asked, *judged, "--device", "cpu", "--out", str(out)])
    found = report.read(out)
    (score,) = found.entries
    assert score.name.startswith("CLIPScore")
    assert score.provenance["samples"] == 2
    assert "coco.json" in score.provenance["labels"]
    assert "ids.txt" in score.provenance["labels"]
    assert str(score.provenance["checkpoint"]).startswith("shapecaps step 1 ")
    assert len(list((out / "images").glob("*.png"))) == 2
    assert "no real pictures of the captions" in (out / "evaluation.txt").read_text()


def test_shapecaps_scores_a_run_by_kind_with_its_control(text_run: Path, tmp_path: Path) -> None:
    asked = ["kinds=[colors]", "num_prompts=3"]
    main([str(text_run), "--suite", "shapecaps", *asked, "--device", "cpu", "--out", str(tmp_path)])
    names = [entry.name for entry in report.read(tmp_path).entries]
    assert names, "figures of the suite"
    assert all(name.startswith("ShapeCaps") for name in names)
    assert (tmp_path / "prompts.png").is_file()
