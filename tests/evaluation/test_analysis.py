"""Representation analysis: known answers on constructed features, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from regscale import assemble
from regscale import path as diffusion_path
from regscale.config import load
from regscale.data import NoiseShapes, digits
from regscale.entangling import schedule_of
from regscale.errors import RegscaleError
from regscale.evaluate.__main__ import main
from regscale.evaluation.cknna import cknna
from regscale.evaluation.hidden import Samples, Subject, agreement, nearest_class, states_of, table
from regscale.evaluation.probe import linear_probe
from regscale.recipe import RunConfig
from regscale.representations import Target, shapes_vit
from regscale.sampling.pictures import save_png
from regscale.schedule import Config as ScheduleConfig
from regscale.schedule import Schedule
from regscale.training import Job, train
from regscale.types import LeafFloats
from tests.conftest import MakeConfig


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_space_is_like_itself_turned_and_scaled() -> None:
    features = normals(120, 16)
    turned = 3 * features @ torch.linalg.qr(normals(16, 16, seed=1)).Q
    assert cknna(features, features) == pytest.approx(1)
    assert cknna(features, turned) == pytest.approx(1)
    assert cknna(features, turned[:, :12]) < 1


def test_independent_spaces_are_not_alike_and_mixtures_lie_between() -> None:
    a, b = normals(300, 16), normals(300, 16, seed=1)
    assert abs(cknna(a, b)) < 0.1
    values = [cknna(a, a + scale * b) for scale in (0.1, 0.5, 2.0)]
    assert 1 > values[0] > values[1] > values[2] > 0
    # neighbours are not mutual, and the published estimate is not quite symmetric for it
    assert cknna(a, a + b) == pytest.approx(cknna(a + b, a), rel=1e-2)
    with pytest.raises(RegscaleError, match="needs the same pictures"):
        cknna(a, b[:10])


def test_a_probe_reads_what_is_linear_and_nothing_else() -> None:
    labels = torch.arange(400) % 4
    centres = normals(4, 8) * 6
    features = centres[labels] + normals(400, 8, seed=2)
    seen, unseen = slice(0, 200), slice(200, 400)
    right = linear_probe(features[seen], labels[seen], features[unseen], labels[unseen])
    assert right > 0.97
    blind = normals(400, 8, seed=3)
    chance = linear_probe(blind[seen], labels[seen], blind[unseen], labels[unseen])
    assert 0.1 < chance < 0.4  # 0.25 expected, 0.03 its deviation
    shifted = 100 * features + 7
    again = linear_probe(shifted[seen], labels[seen], shifted[unseen], labels[unseen])
    assert again == right


def test_agreement_tells_own_images_from_others() -> None:
    tokens = normals(50, 4, 32)
    own, other = agreement(tokens, tokens + 0.1 * normals(50, 4, 32, seed=1))
    assert own > 0.98
    assert abs(other) < 0.1
    features, labels = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3) + 5
    made = torch.stack([torch.eye(4)[[2, 0]], torch.full((2, 4), 0.1)], dim=1)
    assert nearest_class(made, features, labels).tolist() == [7, 5]


def subject_of(loaded: assemble.Loaded, target: Target) -> Subject:
    """The tiny run beside a target."""
    sampler = loaded.sampler
    return Subject(
        device=sampler.device,
        model=sampler.model,
        blocks=sampler.model.blocks,
        towers=loaded.towers,
        path=diffusion_path.build(loaded.config.path),
        shapes=NoiseShapes(latents=sampler.latent_shape, tokens=sampler.token_shapes),
        schedule=schedule_of(loaded.config),
        target=target,
    )


def train_digits(first: int, end: int) -> Samples:
    return Samples(digits.build(digits.Config()), range(first, end), "digits")


def test_of_several_tokens_the_mean_is_compared(loaded: assemble.Loaded) -> None:
    """The first alone says little of a picture: here it is that of its upper left quarter."""
    target = shapes_vit.build(shapes_vit.Config(token="mean", rows=2))
    samples = train_digits(3, 9)
    held = states_of(subject_of(loaded, target), samples, time=0.5)
    tokens = target(samples.source.read(range(3, 9), range(3, 9)).images).tokens
    assert tokens.shape == (6, 4, 64)
    torch.testing.assert_close(held.features, tokens.sum(1) / 4)
    assert not torch.allclose(held.features, tokens[:, 0], atol=0.1)


def test_the_probe_is_tested_on_samples_that_it_was_not_fitted_to(
    run: Path, loaded: assemble.Loaded, tmp_path: Path
) -> None:
    """Also where the settings name the data that the run has."""
    subject = subject_of(loaded, loaded.towers.targets["vit"])
    halves = [states_of(subject, train_digits(i, i + 96), time=0.2) for i in (0, 96)]
    rows = [row._asdict() for row in table(*halves, time=0.2)]
    few = ["--times", "0.2", "--num-samples", "96", "--num-images", "0", "--device", "cpu"]
    for settings, told in (([], ""), (["split=train"], " with split=train")):
        main(["analyse", str(run), *settings, *few, "--out", str(tmp_path)])
        found = json.loads((tmp_path / "analysis.json").read_text())
        assert found["rows"] == rows
        assert found["fitted"] == "samples 0 to 95 of the run's data"
        assert found["tested"] == f"samples 96 to 191 of the run's data{told}"
    with pytest.raises(RegscaleError, match=r"1,198 samples in the run's data, where 1,200 are"):
        main(["analyse", str(run), "--num-samples", "600"])
    with pytest.raises(RegscaleError, match=r"599 samples in .* with split=judge, where 600 are"):
        main(["analyse", str(run), "split=judge", "--num-samples", "600"])


def test_settings_change_the_data_of_the_run_where_they_say_so(
    tiny: MakeConfig, tmp_path: Path
) -> None:
    """Here pictures of 8 x 8 pixels; a folder's are of 256 where nothing is said."""
    images = digits.build(digits.Config()).images[:80]
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        name = f"{'own' if number < 40 else 'other'}/{number % 2}/{number:02d}.png"
        save_png(Image.fromarray(image), tmp_path / name, {})
    data = ["data.kind=image_folder", f"data.root={tmp_path / 'own'}", "data.size=8"]
    job = assemble.job(tiny(*data, "training.num_steps=1"))
    found = analysed(job, tmp_path / "out", f"root={tmp_path / 'other'}")
    assert found["tested"].startswith("samples 0 to 31 of the run's data with root=")


def test_the_command_tells_blocks_and_times(run: Path, tmp_path: Path) -> None:
    settings = ["split=judge", "--times", "0.2", "0.8", "--num-samples", "96", "--num-images", "8"]
    main(["analyse", str(run), *settings, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert [(row["block"], row["time"]) for row in found["rows"]] == [
        *((1, 0.2), (2, 0.2), (1, 0.8), (2, 0.8))
    ]
    assert all(0 <= row["accuracy"] <= 1 and row["cknna"] <= 1 for row in found["rows"])
    assert -1 <= found["token-image agreement"] <= 1
    with pytest.raises(RegscaleError, match="names a target of the run"):
        main(["analyse", str(run), "--target", "x"])


def analysed(job: Job, out: Path, *settings: str) -> dict[str, Any]:
    train(job)
    few = ["--times", "0.5", "--num-samples", "32", "--num-images", "4"]
    main(["analyse", str(job.folder), *settings, *few, "--out", str(out)])
    found: dict[str, Any] = json.loads((out / "analysis.json").read_text())
    return found


def test_a_run_without_the_token_is_looked_at_through_the_same_target(
    tiny: MakeConfig, tmp_path: Path
) -> None:
    job = assemble.job(tiny("entangle.vit.weight=0", "align.vit.weight=0", "training.num_steps=1"))
    found = analysed(job, tmp_path / "out", "split=judge")
    assert [row["block"] for row in found["rows"]] == [1, 2]
    assert "token-image agreement" not in found


def test_tokens_are_compared_as_the_target_makes_them(tiny: MakeConfig, tmp_path: Path) -> None:
    """Normalised, and ahead of the image in time."""
    ahead = ["entangle.vit.schedule.kind=lead", "entangle.vit.schedule.lead=0.5"]
    job = assemble.job(tiny("entangle.vit.normalisation=unit", *ahead, "training.num_steps=1"))
    found = analysed(job, tmp_path / "out", "split=judge")
    assert -1 <= found["token-image agreement"] <= 1


def test_beside_the_image_tokens_have_the_times_of_sampling() -> None:
    ahead = Schedule((ScheduleConfig(kind="lead", lead=0.25), ScheduleConfig()))
    assert ahead.beside(0.5) == LeafFloats(0.5, (0.25, 0.5))
    assert ahead.beside(1.0) == LeafFloats(1.0, (0.75, 1.0))
    assert ahead.beside(0.125) == LeafFloats(0.125, (0.0, 0.125))


def test_a_text_run_is_analysed_by_the_captions_of_its_data(tmp_path: Path) -> None:
    """Also with a target of several tokens."""
    four = ["targets.shapes_vit.token=mean", "targets.shapes_vit.rows=2"]
    small = ["model.depth=2", "model.hidden_size=32", "model.num_heads=2", "device=cpu"]
    brief = ["training.num_steps=1", "training.batch_size=4", "training.preview_every=0"]
    options = [f"runs={tmp_path}", *small, *brief, *four, "align.shapes_vit.depth=1"]
    job = assemble.job(load(RunConfig, Path("configs/shapecaps.yaml"), options))
    found = analysed(job, tmp_path / "out")
    assert all(row["accuracy"] is None for row in found["rows"])
    assert {"token-image agreement", "with another image"} <= found.keys()
