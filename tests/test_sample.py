"""Sampling: the same picture at any batch size, what a PNG says, and every refusal."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from regscale import assemble
from regscale import sample as command
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.evaluation.suites._classes import wanted_of
from regscale.recipe import RunConfig
from regscale.sampling import GuidanceConfig, TargetGuidance, guided
from regscale.training import train
from regscale.types import Entangled, Labels, LeafFloats, Prediction
from tests.conftest import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tiny run; 120 steps, so that conditions and tokens matter."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    options = [f"runs={folder / 'runs'}", "training.num_steps=120", "training.log_every=20"]
    job = assemble.job(load(RunConfig, folder / "tiny.yaml", options))
    train(job)
    return job.folder


@pytest.fixture(scope="module")
def loaded(run: Path) -> assemble.Loaded:
    return assemble.trained(run, device="cpu")


@pytest.mark.parametrize("solver", ["euler", "heun", "euler_maruyama", "dopri5"])
def test_image_i_is_the_same_at_any_batch_size(run: Path, solver: str) -> None:
    from regscale import path as diffusion_path
    from regscale.config import plugin

    module = plugin("regscale.sampling.solvers", solver)
    settings = {} if solver == "dopri5" else {"num_steps": 4}
    sampler = replace(
        assemble.trained(run, device="cpu").sampler,
        solver=module.build(module.Config(**settings), diffusion_path.build("linear")),
    )
    labels, seeds = torch.arange(7), range(3, 10)
    guidance = GuidanceConfig(scale=2.0)
    whole = sampler.state(Labels(labels), seeds, guidance)
    parts = [
        sampler.state(Labels(labels[s]), seeds[s], guidance) for s in (slice(0, 1), slice(1, 7))
    ]
    for i, leaf in enumerate(whole.leaves):
        joined = torch.cat([part.leaves[i] for part in parts])
        # fp32 products of another batch size may round differently: 1e-5 over four steps
        torch.testing.assert_close(leaf, joined, rtol=0, atol=1e-5)


def test_seeds_and_classes_make_different_pictures(loaded: assemble.Loaded) -> None:
    strong = GuidanceConfig(scale=4.0)
    images = command.sample(loaded, ["three", "7"], seeds=[0, 1], guidance=strong)
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4
    single = command.sample(loaded, ["three", "7"], seeds=[0, 1], guidance=strong, batch_size=1)
    assert torch.equal(images, single)


def test_guidance_has_its_own_scale_and_interval_for_image_and_token() -> None:
    calls: list[int] = []

    def model(latents, tokens, time, token_times, condition):  # type: ignore[no-untyped-def]
        calls.append(len(latents))
        value = condition.labels.float()
        return Prediction(value.reshape(-1, 1, 1, 1).expand_as(latents), (value.reshape(-1, 1, 1),))

    state = Entangled(
        torch.zeros(1, 1, 2, 2, dtype=torch.float64), (torch.zeros(1, 1, 1, dtype=torch.float64),)
    )
    guidance = GuidanceConfig(
        scale=3.0, interval=(0.2, 0.8), token_scale=2.0, token_interval=(0.5, 1.0)
    )
    field = guided(model, Labels(torch.tensor([5])), Labels(torch.tensor([1])), guidance)
    at = {t: field(state, LeafFloats(t, (t,))) for t in (0.1, 0.3, 0.6, 0.9)}
    image = [float(at[t].latents[0, 0, 0, 0]) for t in at]
    token = [float(at[t].tokens[0]) for t in at]
    assert image == [5, 1 + 3 * 4, 1 + 3 * 4, 5]
    assert token == [5, 5, 1 + 2 * 4, 1 + 2 * 4]
    assert calls == [1, 2, 2, 2]  # twice the batch only where some scale differs from 1


def test_each_target_may_have_its_own_scale_and_interval_of_its_own_time() -> None:
    guidance = GuidanceConfig(scale=3.0, token_scale=2.0, token_interval=(0.5, 1.0))
    own = [TargetGuidance(), TargetGuidance(scale=5.0), TargetGuidance(interval=(0.0, 0.2))]
    early = guidance.scales(LeafFloats(0.9, (0.9, 0.9, 0.9)), own)
    late = guidance.scales(LeafFloats(0.9, (0.1, 0.1, 0.1)), own)
    assert early == LeafFloats(3.0, (2.0, 5.0, 1.0))
    assert late == LeafFloats(3.0, (1.0, 1.0, 2.0))


def test_averaged_weights_are_what_is_drawn_with(run: Path) -> None:
    made = [
        command.sample(assemble.trained(run, device="cpu", decay=d), ["3"], seeds=range(4))
        for d in (0.9, 0.99)
    ]
    assert not torch.equal(*made)


def test_the_command_writes_pictures_that_say_how_they_were_made(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--checkpoint", str(run), "--class", "3", "seven", "--num-images", "2"]
    guidance = ["--guidance-scale", "1.5", "--token-guidance-interval", "0.2", "0.9"]
    command.main([*arguments, "--seed", "5", *guidance, "--out", str(out)])
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        *("3-seed5.png", "3-seed6.png", "grid.png"),
        *("seven-seed5.png", "seven-seed6.png"),
    ]
    with Image.open(out / "seven-seed6.png") as picture:
        text = dict(picture.text)  # type: ignore[attr-defined]
        assert picture.size == (8, 8)
    assert text["condition"] == "seven"
    assert text["seed"] == "6"
    assert "'scale': 1.5" in text["guidance"]
    assert "'token_interval': [0.2, 0.9]" in text["guidance"]
    assert "euler" in text["solver"]
    assert text["checkpoint"].startswith("tiny step 120 ")
    assert len(text["checkpoint"].split()[-1]) == 32  # of the manifest, an xxh3
    assert (text["precision"], text["attention"].split()[0]) == ("fp32", "sdpa")
    assert text["ema"] == "0.9"


def test_without_a_checkpoint_the_newest_run_is_taken(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    command.main(["--class", "1", "--num-images", "1", "--out", "here"])
    assert Path("here/1-seed0.png").exists()


def test_one_checkpoint_of_a_run_may_be_asked_for(run: Path) -> None:
    """A large job of a run that goes on must not move to the next save."""
    from regscale.checkpoint import candidates

    newest, older = candidates(run / "checkpoints")[:2]
    name = ["--class", "2", "--num-images", "1"]
    said = []
    for folder in (older, newest, run):
        command.main(["--checkpoint", str(folder), *name])
        with Image.open(run / "samples" / "drawn" / "2-seed0.png") as picture:
            said.append(picture.text["checkpoint"])  # type: ignore[attr-defined]
    assert said[0].startswith(f"tiny step {int(older.name.removeprefix('step-'))} ")
    assert said[1] == said[2] != said[0]
    damaged = run.parent / "step-00000008"
    shutil.copytree(older, damaged)
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(RegscaleError, match="step-00000008"):
        command.main(["--checkpoint", str(damaged), *name])


def test_a_run_is_the_same_from_wherever_its_checkpoint_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regscale.checkpoint import candidates

    newest = candidates(run / "checkpoints")[0]
    ways = {
        newest.parent: newest.name,
        newest: ".",
        run / "samples": f"../checkpoints/{newest.name}",
    }
    for folder, name in ways.items():
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert assemble.trained(Path(name), device="cpu").run == run
    copied = tmp_path / "copied"
    shutil.copytree(newest, copied)
    assert assemble.trained(copied, device="cpu").run == copied


def test_a_suite_of_classes_is_not_for_a_model_that_reads_a_text(loaded: assemble.Loaded) -> None:
    """Beside a text a class's number would be read as a text."""
    assert loaded.sampler.num_classes == 10
    reading = replace(loaded.sampler, model=SimpleNamespace(reads_text=True))
    assert reading.num_classes is None
    with pytest.raises(RegscaleError, match="draws classes; found a run that reads a text"):
        wanted_of(10, reading.num_classes, "balanced", seed=0)


def test_settings_of_sampling_may_be_changed(run: Path, tmp_path: Path) -> None:
    asked = ["--checkpoint", str(run), "--class", "3", "--num-images", "1", "--out", str(tmp_path)]
    command.main([*asked, "--sampling", "solver.kind=heun", "solver.num_steps=4"])
    with Image.open(tmp_path / "3-seed0.png") as picture:
        said = picture.text["solver"]  # type: ignore[attr-defined]
    assert "heun" in said
    assert "'num_steps': 4" in said
    with pytest.raises(RegscaleError, match=r"sampling\.solver\.stps: .*num_steps"):
        command.main([*asked, "--sampling", "solver.stps=4"])


def test_texts_that_differ_have_files_that_differ() -> None:
    texts = ["a red circle", "a red-circle", "a/red circle", "", "empty", "x" * 300, "x" * 301]
    names = [command._file_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert names[0] == "a-red-circle"
    assert all(name and "/" not in name and len(name) < 140 for name in names)


REFUSALS = [
    (["--class", "12"], "class 12: is not between 0 and 9; found 12; the nearest is 9 nine"),
    (["--class", "sevn"], "is not the name of a class; found 7 seven as the nearest"),
    (["--prompt", "a lighthouse"], "was trained on classes, not on text; found conditioning class"),
    (["--class", "1", "--ema", "0.5"], "has no average of decay 0.5; found [0.9, 0.99]"),
    (["--class", "1", "--num-images", "0"], "are positive; found 0, 32"),
    (
        ["--class", "1", "--guidance-interval", "0.5", "0.1"],
        "guidance interval: is [low, high] within [0, 1]; found [0.5, 0.1]",
    ),
    (["--class", "1", "--guidance-scale", "nan"], "guidance scale: is a finite number; found nan"),
    (["--class", "1", "--device", "cuda"], "'cuda' is not to be had on this machine; found cpu"),
    (["--class", "1", "--out", "/proc/no"], "/proc/no: cannot be written"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_a_wrong_argument_is_told_in_four_parts(
    run: Path, arguments: list[str], message: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA, so asking for it is right")
    with pytest.raises(RegscaleError) as caught:
        command.main(["--checkpoint", str(run), *arguments])
    assert message in str(caught.value)


def test_without_any_run_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegscaleError, match=r"Make one: python -m regscale\.train"):
        command.main(["--class", "1"])
    with pytest.raises(RegscaleError, match="holds no checkpoint"):
        command.main(["--class", "1", "--checkpoint", str(tmp_path)])


def test_a_retrained_run_is_refused_for_the_pictures_of_the_first(
    run: Path, tmp_path: Path
) -> None:
    """Of the same name and step: only the weights tell them apart."""
    from regscale.checkpoint import Piece, Reader, Record, candidates, save

    (tmp_path / "p.txt").write_text("3\n7\n")
    arguments = ["--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]
    command.main(["--checkpoint", str(run), *arguments])
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    reader, again = Reader(candidates(run / "checkpoints")[0]), tmp_path / run.name
    pieces = [Piece.whole(name, 1.5 * reader.tensor(name)) for name in reader.names()]
    about = Record(step=reader.step, samples=reader.samples, config=reader.config)
    save(again / "checkpoints", pieces, about)
    with pytest.raises(
        RegscaleError, match=r"another making: checkpoint is tiny step 120 .*; found"
    ):
        command.main(["--checkpoint", str(again), *arguments])
    command.main(["--checkpoint", str(run), *arguments])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == made


def test_a_checkpoint_of_another_shape_is_refused(run: Path, tmp_path: Path) -> None:
    """A manifest whose config does not describe its weights."""
    from regscale.checkpoint import Piece, Reader, Record, candidates, save

    reader = Reader(candidates(run / "checkpoints")[0])
    values = json.loads(json.dumps(reader.config))
    values["model"]["hidden_size"] = 64
    pieces = [Piece.whole(name, reader.tensor(name)) for name in reader.names()]
    save(tmp_path / "x" / "checkpoints", pieces, Record(step=1, samples=1, config=values))
    with pytest.raises(RegscaleError, match=r"does not fit the model, which has shape"):
        assemble.trained(tmp_path / "x", device="cpu")


def test_a_run_folder_may_be_moved(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    a, b = (assemble.trained(folder, device="cpu") for folder in (run, moved))
    assert torch.equal(command.sample(a, ["1"], seeds=[0]), command.sample(b, ["1"], seeds=[0]))
