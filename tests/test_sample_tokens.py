"""Sampling with entangled tokens: from a reference picture, ahead of the image, guided."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from regscale import assemble
from regscale import sample as command
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.recipe import RunConfig
from regscale.sampling import TargetGuidance
from regscale.sampling.pictures import to_picture
from regscale.training import train
from tests.conftest import TINY


def made(folder: Path, *overrides: str) -> Path:
    (folder / "tiny.yaml").write_text(TINY)
    steps = ("training.num_steps=40", "training.checkpoint_every=40")
    options = [f"runs={folder / 'runs'}", "optimizer.learning_rate=1e-2", *steps, *overrides]
    job = assemble.job(load(RunConfig, folder / "tiny.yaml", options))
    train(job)
    return job.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = ("schedule.kind=independent", "guidance_scale=30", "guidance_interval=[0.0,0.9]")
    return made(tmp_path_factory.mktemp("own"), *(f"entangle.vit.{each}" for each in own))


def drawn(run: Path, folder: Path, *arguments: str) -> dict[str, str]:
    """What the only picture of a command says, and its pixels."""
    asked = ["--class", "3", "--num-images", "1", "--guidance-scale", "2", *arguments]
    command.main(["--checkpoint", str(run), *asked, "--out", str(folder)])
    with Image.open(folder / "3-seed0.png") as picture:
        return {**picture.text, "pixels": picture.tobytes().hex()}  # type: ignore[attr-defined]


def reference(folder: Path, place: int) -> Path:
    """A digit as a picture of another size and shape."""
    data = assemble.pieces(load(RunConfig, folder / "tiny.yaml")).source
    digit = data.read([place], [0]).images[0]
    path = folder / f"digit{place}.png"
    to_picture(digit).resize((24, 16), Image.Resampling.NEAREST).save(path)
    return path


def test_a_reference_fixes_the_token_and_the_image_follows_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    first, second = (reference(tmp_path, place) for place in (0, 5))
    free = drawn(run, tmp_path / "free")
    one = drawn(run, tmp_path / "one", "--reference", str(first))
    other = drawn(run, tmp_path / "other", "--reference", str(second))
    again = drawn(run, tmp_path / "again", "--reference", str(first))
    assert len({each["pixels"] for each in (free, one, other)}) == 3
    assert again["pixels"] == one["pixels"]
    assert one["reference"].startswith("digit0.png xxh3 ")
    assert "reference" not in free


def test_the_token_that_is_given_is_that_of_the_picture(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    loaded = assemble.trained(run, device="cpu")
    (given,) = command._given(loaded, reference(tmp_path, 3))
    assert given is not None
    sampler, guidance = loaded.sampler, loaded.config.sampling.guidance
    state = sampler.state(sampler.conditioner.parse(["3", "4"]), [0, 1], guidance, [given])
    assert torch.equal(state.tokens[0], given.double().expand(2, -1, -1))


def test_a_file_of_classes_is_drawn_with_a_reference_too(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "p.txt").write_text("3\nseven\n")
    arguments = ["--prompts", str(tmp_path / "p.txt"), "--reference", str(reference(tmp_path, 0))]
    command.main(["--checkpoint", str(run), *arguments, "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "000001.png") as picture:
        text = dict(picture.text)  # type: ignore[attr-defined]
    assert text["condition"] == "seven"
    assert text["reference"].startswith("digit0.png")


def test_tokens_first_is_another_way_to_the_picture(run: Path, tmp_path: Path) -> None:
    first = drawn(run, tmp_path / "first", "--tokens-first")
    assert first["tokens_first"] == "True"
    assert first["pixels"] != drawn(run, tmp_path / "same")["pixels"]


def test_options_come_before_what_a_target_says_of_itself_and_that_is_told(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        own = drawn(run, tmp_path / "own")
    assert "gives way" not in caplog.text
    assert "'vit': {'scale': 30.0, 'interval': (0.0, 0.9)}" in own["target_guidance"]
    scale = ["--token-guidance-scale", "1"]
    with caplog.at_level(logging.INFO):
        scaled = drawn(run, tmp_path / "scaled", *scale)
    told = [r.message for r in caplog.records if "gives way" in r.message]
    assert told == ["entangle.vit.guidance_scale 30.0 gives way to --token-guidance-scale 1.0"]
    assert "'scale': None, 'interval': (0.0, 0.9)" in scaled["target_guidance"]
    both = drawn(run, tmp_path / "both", *scale, "--token-guidance-interval", "0", "1")
    assert "target_guidance" not in both
    assert len({each["pixels"] for each in (own, scaled)}) == 2


def test_evaluation_takes_the_same_options_in_the_same_way(run: Path) -> None:
    from argparse import ArgumentParser

    from regscale.checkpoint.read import ALONE
    from regscale.evaluate import _run, score

    parser = ArgumentParser()
    score.add_arguments(parser)
    asked = [str(run), "--suite", "digits", "--token-guidance-scale", "2", "--device", "cpu"]
    options = parser.parse_args([*asked, "--sampling", "precision=bf16"])
    loaded = _run.load(options, ALONE)
    assert loaded.sampler.target_guidance == (TargetGuidance(None, (0.0, 0.9)),)
    assert loaded.config.sampling.precision == "bf16"


def test_a_picture_that_cannot_be_read_is_told(run: Path, tmp_path: Path) -> None:
    for content, message in ((None, "No such file"), (b"GIF89a", "no JPEG, PNG or WebP picture")):
        path = tmp_path / "x.png"
        if content:
            path.write_bytes(content)
        with pytest.raises(RegscaleError, match=rf"--reference .*cannot be read; found {message}"):
            command.main(["--checkpoint", str(run), "--class", "3", "--reference", str(path)])


def test_a_run_whose_token_has_the_time_of_the_image_takes_no_reference(tmp_path: Path) -> None:
    run = made(tmp_path, "training.num_steps=1")
    path = reference(tmp_path, 0)
    with pytest.raises(RegscaleError, match=r"times of its own.*found vit with schedule same"):
        command.main(["--checkpoint", str(run), "--class", "3", "--reference", str(path)])
