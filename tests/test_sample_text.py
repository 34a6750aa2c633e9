"""Sampling of a run on text: negative prompts, sizes, shifts, files of prompts."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regscale import assemble
from regscale import sample as command
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.recipe import RunConfig
from regscale.resize import patch_pixels, resized
from regscale.sampling import GuidanceConfig
from regscale.training import train
from tests.models.test_text_engines import TEXT

GUIDED = GuidanceConfig(scale=4.0)


def made(folder: Path, *overrides: str) -> Path:
    """A run of a few steps, stirred by a high learning rate so that its text matters."""
    (folder / "tiny.yaml").write_text(TEXT)
    options = [f"runs={folder / 'runs'}", "optimizer.learning_rate=1e-2", *overrides]
    job = assemble.job(load(RunConfig, folder / "tiny.yaml", options))
    train(job)
    return job.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = ("training.num_steps=30", "training.checkpoint_every=30")
    return made(tmp_path_factory.mktemp("text"), *steps)


@pytest.fixture(scope="module")
def loaded(run: Path) -> assemble.Loaded:
    return assemble.trained(run, device="cpu")


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.array(picture)


def text_of(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        return dict(picture.text)  # type: ignore[attr-defined]


def test_an_empty_negative_prompt_is_the_null_and_another_is_not(
    loaded: assemble.Loaded,
) -> None:
    parse = loaded.sampler.conditioner.parse
    condition = parse(["a red circle", "two squares"])
    states = {
        text: replace(loaded.sampler, negative=text and parse([text.strip()])).state(
            condition, [0, 1], GUIDED
        )
        for text in (None, " ", "a blue square")
    }
    assert torch.equal(states[None].latents, states[" "].latents)
    assert not torch.equal(states[None].latents, states["a blue square"].latents)


def test_guidance_away_from_the_prompt_itself_is_the_prompt_alone(
    loaded: assemble.Loaded,
) -> None:
    parse = loaded.sampler.conditioner.parse
    condition, seeds = parse(["a red circle"]), [3]
    sampler = replace(loaded.sampler, negative=condition)
    away, alone = (sampler.state(condition, seeds, g) for g in (GUIDED, GuidanceConfig()))
    # two rows of one batch and one of another round differently: 1e-5 over three steps
    torch.testing.assert_close(away.latents, alone.latents, rtol=0, atol=1e-5)


def test_the_command_says_everything_in_its_pictures(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["--prompt", "a red circle", "two squares", "--num-images", "2", "--seed", "5"]
    ways = ["--negative-prompt", "a blue square", "--size", "32x64", "--shift", "size"]
    command.main(
        ["--checkpoint", str(run), *asked, *ways, "--guidance-scale", "3", "--out", str(tmp_path)]
    )
    assert len(list(tmp_path.glob("*-seed*.png"))) == 4
    path = tmp_path / "two-squares-seed6.png"
    said = text_of(path)
    assert pixels(path).shape == (32, 64, 3)
    assert (said["condition"], said["seed"]) == ("two squares", "6")
    assert said["negative_prompt"] == "a blue square"
    assert said["size"] == "32x64"
    assert float(said["shift"]) == pytest.approx(2**0.5)  # twice the pixels
    assert "'scale': 3.0" in said["guidance"]
    with caplog.at_level(logging.WARNING):
        command.main(["--checkpoint", str(run), *asked, *ways[:2], "--out", str(tmp_path)])
    assert "--negative-prompt does nothing at a guidance scale of 1" in caplog.text


def test_a_run_at_its_own_size_stays_as_it_is_and_at_another_has_the_same_model(
    loaded: assemble.Loaded,
) -> None:
    assert resized(loaded, (32, 32)) is loaded
    assert patch_pixels(loaded) == 8
    wide = resized(loaded, (16, 64))  # as many patches in another shape
    assert patch_pixels(wide) == 8
    assert wide.sampler.model is loaded.sampler.model
    images = command.sample(wide, ["a red circle"], seeds=[0], guidance=GUIDED)
    assert images.shape == (1, 3, 16, 64)
    back = resized(wide, (32, 32))
    again = command.sample(back, ["a red circle"], seeds=[0], guidance=GUIDED)
    first = command.sample(loaded, ["a red circle"], seeds=[0], guidance=GUIDED)
    assert torch.equal(again, first)


def test_an_aspect_keeps_about_the_pixels_of_training(run: Path, tmp_path: Path) -> None:
    asked = ["--prompt", "a red circle", "--num-images", "1", "--aspect", "4:1"]
    command.main(["--checkpoint", str(run), *asked, "--out", str(tmp_path)])
    assert pixels(tmp_path / "a-red-circle-seed0.png").shape == (16, 64, 3)


def test_a_table_of_places_is_told_where_another_size_is_asked_for(tmp_path: Path) -> None:
    run = made(tmp_path, "model.rope=false", "training.num_steps=1")
    with pytest.raises(RegscaleError, match=r"size 64x64: this model knows places of 32x32"):
        command.main(["--checkpoint", str(run), "--prompt", "a circle", "--size", "64x64"])


def test_prompts_of_a_file_are_drawn_once_and_the_same_command_goes_on(
    run: Path, tmp_path: Path
) -> None:
    lines = [f'{{"prompt": "{text}"}}' for text in ("a red circle", "two squares", "a circle")]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    asked = ["--prompts", str(tmp_path / "p.jsonl"), "--seed", "4", "--guidance-scale", "3"]
    asked = ["--checkpoint", str(run), *asked, "--negative-prompt", "a cross", "--out", str(out)]
    command.main([*asked, "--batch-size", "2"])
    made = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(made) == [*(f"{i:06d}.png" for i in range(3)), "grid.png", "making.json"]
    said = text_of(out / "000001.png")
    assert (said["condition"], said["seed"]) == ("two squares", "5")
    assert said["negative_prompt"] == "a cross"
    kept = (out / "000000.png").stat().st_mtime_ns
    (out / "000002.png").unlink()
    command.main([*asked, "--batch-size", "2"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == made
    assert (out / "000000.png").stat().st_mtime_ns == kept
    with pytest.raises(RegscaleError, match=r"images of another making: unit is 3; found 2"):
        command.main([*asked, "--batch-size", "3"])


REFUSALS = [
    (["--size", "30x32"], "--size 30x32: has sides that are multiples of 8 pixels"),
    (["--size", "30x32"], "The nearest size is 32x32."),
    (["--shift", "0"], "--shift: is a positive number, or 'size'; found 0. 1 is none."),
    (["--shift", "much"], "--shift: is a positive number, or 'size'; found much."),
    (["--tokens-first"], "--tokens-first: needs an entangled target with times of its own; found"),
    (["--reference", "x.png"], "--reference: needs an entangled target with times of its own"),
    (["--negative-prompt", "a qube"], "has words of the vocabulary alone; found qube"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_a_wrong_argument_is_told_in_four_parts(
    run: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(RegscaleError) as caught:
        command.main(["--checkpoint", str(run), "--prompt", "a circle", *arguments])
    assert message in str(caught.value)


def test_several_processes_are_told_to_share_a_file(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RegscaleError, match=r"are for one process.*; found 2 processes"):
        command.main(["--checkpoint", str(run), "--prompt", "a circle"])


def test_images_of_a_file_are_not_counted_twice(run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a circle\n")
    arguments = ["--prompts", str(tmp_path / "p.txt"), "--num-images", "2"]
    with pytest.raises(RegscaleError, match=r"--num-images: is not for --prompts"):
        command.main(["--checkpoint", str(run), *arguments])
