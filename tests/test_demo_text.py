"""The text demo, cut short: its config trains, its command draws a labelled sheet and scores."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regscale import assemble
from regscale.config import load, to_values
from regscale.evaluate.__main__ import main
from regscale.recipe import RunConfig
from regscale.training import train

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = ("training.num_steps=3", "training.batch_size=4", "training.log_every=1")


@pytest.mark.timeout(120)
def test_the_text_demo_trains_draws_and_scores(tmp_path: Path) -> None:
    options = [f"runs={tmp_path}", "name=demo", "device=cpu", "sampling.solver.num_steps=2"]
    job = assemble.job(load(RunConfig, CONFIGS / "shapecaps.yaml", [*options, *SHORT]))
    train(job)
    out = tmp_path / "prompts"
    asked = ["kinds=[single_object, colors]", "num_prompts=2", "--device", "cpu"]
    main([str(job.folder), "--suite", "shapecaps", *asked, "--out", str(out)])
    report = (out / "evaluation.txt").read_text()
    assert "seen colors" in report
    assert "held_out colors" in report
    sheet = np.asarray(Image.open(out / "prompts.png"))
    assert sheet.shape[0] > 3 * 96, "a row of each kind and split"


def test_the_full_run_asks_for_all_kinds_of_the_same_program() -> None:
    quick, full = (
        to_values(load(RunConfig, CONFIGS / f"{name}.yaml"))
        for name in ("shapecaps", "shapecaps_full")
    )
    assert quick["data"]["kinds"] == ["single_object", "colors"]
    assert len(full["data"]["kinds"]) == 6
    assert full["conditioning"]["kind"] == quick["conditioning"]["kind"] == "words"
    assert quick["model"]["rope"] is full["model"]["rope"] is True
    for config in (quick, full):
        assert config["entangle"]["shapes_vit"]["weight"] > 0
        assert config["align"]["shapes_vit"]["weight"] > 0
