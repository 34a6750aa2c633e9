"""A new run from the weights of another: what is taken, resized, left, refused, and remembered."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regscale import assemble, export
from regscale.checkpoint import newest
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.layers.initial import initial_values
from regscale.layers.position import resized_table
from regscale.published import Architecture, from_official
from regscale.recipe import RunConfig
from regscale.training import Job, train
from regscale.types import Labels, Prediction
from tests.conftest import TINY
from tests.models.test_text_engines import TEXT
from tests.published.conftest import _state

WORDS = "conditioning={kind: words, vocabulary: shapecaps, width: 16}"
TO_TEXT = (WORDS, "model.text=gated")
ONCE = ("training.num_steps=1", "training.checkpoint_every=1")


def configured(folder: Path, text: str, *overrides: str) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(text)
    return load(RunConfig, path, [f"runs={folder / 'runs'}", *overrides])


def begun(folder: Path, source: Path, *overrides: str, text: str = TINY) -> Job:
    """A run that would start from `source`."""
    path = f"init_from.path={source}"
    return assemble.job(configured(folder, text, "name=new", path, *overrides))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional run whose weights and averages have moved."""
    folder = tmp_path_factory.mktemp("classes")
    moved = ("optimizer.learning_rate=1e-2", "training.num_steps=12")
    job = assemble.job(configured(folder, TINY, *moved))
    train(job)
    return job.folder


def held(run: Path, prefix: str) -> dict[str, Tensor]:
    reader = newest(run / "checkpoints")
    assert reader is not None
    names = [name for name in reader.names() if name.startswith(prefix)]
    return {name.removeprefix(prefix): reader.tensor(name) for name in names}


def state(job: Job) -> dict[str, Tensor]:
    return dict(job.engine.full_state())


def predicted(model: Any, condition: Any) -> Prediction:
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 1, 8, 8, generator=g)
    token = torch.randn(3, 1, 48, generator=g)
    times = torch.rand(3, generator=g)
    with torch.no_grad():
        found: Prediction = model(latents, (token,), times, (times,), condition)
    return found


def test_a_text_model_with_closed_gates_equals_its_class_model_without_a_class(
    classes: Path, tmp_path: Path
) -> None:
    """Bit for bit, whatever the prompt says, also the velocity of the token."""
    before = begun(tmp_path, classes, "name=classes").engine.model
    job = begun(tmp_path, classes, *TO_TEXT)
    prompts = job.towers.conditioner.parse(["a red circle", "", "three crosses"])
    after = predicted(job.engine.model, prompts)
    none, some = (predicted(before, Labels(torch.full((3,), label))) for label in (10, 3))
    assert torch.equal(after.latents, none.latents)
    assert torch.equal(after.tokens[0], none.tokens[0])
    assert after.aligned[0] is not None
    assert torch.equal(after.aligned[0], none.aligned[0])
    assert not torch.equal(after.latents, some.latents)  # a class says something
    gates = [block.attn.txt_gate for block in job.engine.model.blocks]
    assert all(not gate.any() for gate in gates)


def test_labels_are_not_lost_where_a_text_stands_beside_them(classes: Path, tmp_path: Path) -> None:
    parts = "{label: {kind: class_label, num_classes: 10, names: digits}, text: {kind: words}}"
    both = f"conditioning={{kind: several, parts: {parts}}}"
    job = begun(tmp_path, classes, both, "model.text=gated")
    before = begun(tmp_path, classes, "name=classes").engine.model
    condition = job.towers.conditioner.parse(["3 | a circle", "4 | a red cross", "3 | "])
    after = predicted(job.engine.model, condition)
    want = predicted(before, Labels(torch.tensor([3, 4, 3])))
    assert torch.equal(after.latents, want.latents)


def test_the_same_model_begins_as_the_averages_or_the_weights_and_so_do_its_averages(
    classes: Path, tmp_path: Path
) -> None:
    cases = {"ema/0.9/": (), "ema/0.99/": ("init_from.decay=0.99",)}
    cases["model/"] = ("init_from.weights=model",)
    for prefix, overrides in cases.items():
        job, want = begun(tmp_path, classes, *overrides), held(classes, prefix)
        for made in (state(job), job.ema.averages[0.9]):
            assert made.keys() == want.keys()
            assert all(torch.equal(made[n].view(-1), want[n].view(-1)) for n in want), prefix
    averages, weights = held(classes, "ema/0.9/"), held(classes, "model/")
    assert any(not torch.equal(averages[name], weights[name]) for name in weights)


def test_the_model_keeps_its_own_rules_for_a_later_start(classes: Path, tmp_path: Path) -> None:
    """What was read is not held for the length of the run."""
    model = begun(tmp_path, classes).engine.model
    fresh = assemble.pieces(configured(tmp_path, TINY)).model
    made, drawn = (dict(initial_values(m, seed=0)) for m in (model, fresh))
    assert all(torch.equal(made[name], drawn[name]) for name in drawn)


@pytest.mark.slow
def test_a_checkpoint_and_a_published_file_are_as_good_as_the_folder(
    classes: Path, tmp_path: Path
) -> None:
    want = state(begun(tmp_path, classes))
    export.main([str(classes), "--to", str(tmp_path / "reg.pt")])
    export.main([str(classes), "--to", str(tmp_path / "reg.safetensors")])
    one = next(classes.glob("checkpoints/step-*12"))
    for source in (one, tmp_path / "reg.pt", tmp_path / "reg.safetensors"):
        made = state(begun(tmp_path, source))
        assert made.keys() == want.keys()
        assert all(torch.equal(made[name], want[name]) for name in want), source


def test_official_sit_is_turned_around_before_it_is_taken(tmp_path: Path) -> None:
    sizes = {"depth": 2, "hidden_size": 32, "patch_size": 2, "channels": 1, "mlp_hidden": 128}
    model = Architecture(**sizes, num_labels=11, latent_side=8, doubled=True)
    official = _state(model)
    torch.save(official, tmp_path / "sit.pt")
    made = state(begun(tmp_path, tmp_path / "sit.pt"))
    for name, value in from_official(official, model).items():
        if name != "pos_embed":
            assert torch.equal(made[name], value), name
    assert torch.equal(made["pos_embed"][:, 1:], official["pos_embed"])  # after its own token


def test_a_label_table_of_other_classes_is_left_and_the_rest_is_taken(
    classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fewer = "conditioning={kind: class_label, num_classes: 12, names: null}"
    with caplog.at_level(logging.INFO, logger="regscale"):
        made, want = state(begun(tmp_path, classes, fewer)), held(classes, "ema/0.9/")
    fresh = state(assemble.job(configured(tmp_path, TINY, fewer)))
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(made[table], fresh[table])
    assert all(torch.equal(made[name], want[name]) for name in want if name != table)
    assert "left       1  y_embedder.embedding_table: (11, 32) there" in caplog.text


def test_the_table_is_told_once_and_names_everything(
    classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="regscale"):
        begun(tmp_path, classes, *TO_TEXT)
    (told,) = [r.getMessage() for r in caplog.records if "init_from" in r.getMessage()]
    lines = told.splitlines()
    assert lines[0].endswith("step-00000012, ema/0.9")
    assert "  taken      4  blocks.*.attn.qkv" in lines
    assert "  left       2  blocks.*.attn.txt_gate" in lines
    assert "  taken      1  pos_embed" in lines
    bias = "with 'no class' of y_embedder.embedding_table.weight"
    assert any(line.startswith("  taken") and line.endswith(bias) for line in lines)
    assert not any("unused" in line for line in lines)


@pytest.mark.parametrize("places", ["rope: false", "rope: true, rope_table: true"])
def test_places_are_resized_to_a_larger_picture(places: str, tmp_path: Path) -> None:
    text = TEXT.replace("rope: true", places)
    small = assemble.job(configured(tmp_path, text, *ONCE))
    train(small)
    large = begun(tmp_path, small.folder, "data.size=64", text=text)
    old, new = (job.engine.model.pos_embed[0] for job in (small, large))
    assert (len(old), len(new)) == (16, 64)
    assert torch.equal(new, resized_table(old, (4, 4), (8, 8)))
    ramp = torch.arange(16.0).repeat(16)[:, None]  # column numbers
    twice = resized_table(ramp, (16, 16), (32, 32)).reshape(32, 32)
    want = (torch.arange(32.0) + 0.5) / 2 - 0.5  # the same places, at half the distance
    torch.testing.assert_close(twice[7, 4:-4], want[4:-4])


def test_a_model_with_rope_computes_its_places_and_takes_all_else(tmp_path: Path) -> None:
    small = assemble.job(configured(tmp_path, TEXT, *ONCE))
    train(small)
    large = begun(tmp_path, small.folder, "data.size=64", text=TEXT)
    fresh = assemble.job(configured(tmp_path, TEXT, "data.size=64", "name=fresh"))
    made, want, own = state(large), held(small.folder, "ema/0.9/"), state(fresh)
    for name in made:
        expected = own if name in large.engine.model.places else want
        assert torch.equal(made[name], expected[name]), name


def test_a_run_that_resumes_does_not_read_it_and_remembers_where_it_came_from(
    classes: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(classes, source)
    train(begun(tmp_path, source, "training.num_steps=2"))
    shutil.rmtree(source)
    train(begun(tmp_path, source, "training.num_steps=4"))
    reader = newest(tmp_path / "runs/new/checkpoints")
    assert reader is not None
    origin = reader.progress["init_from"]
    assert (reader.step, origin["step"], origin["weights"]) == (4, 12, "ema/0.9")
    assert origin["path"].endswith("source/checkpoints/step-00000012")
    assert origin["digest"].startswith("xxh3 ")
    assert newest(classes / "checkpoints").progress["init_from"] is None  # type: ignore[union-attr]


REFUSALS = [
    (["init_from.path=none/there"], r"init_from\.path none/there: there is no such file or folder"),
    (["init_from.decay=0.5"], r"init_from\.decay 0\.5: is that of an average in .*; found 0\.9, 0"),
    (
        ["model.hidden_size=64"],
        r"is of a model of another width or depth; found t_embedder\.mlp\.0\.weight \(32, 256\), "
        r"here \(64, 256\); .* names differ\)\. Give model the size of these weights",
    ),
    (["model.depth=3"], r"blocks\.2\.attn\.qkv\.weight absent, here \(96, 32\); blocks\.2"),
    (["model.depth=1"], r"blocks\.1\.adaLN_modulation\.1\.bias \(192,\), here absent"),
    (["model.num_heads=2"], r"is of a model with 2 attention heads.*; found 4\. Set model\.num_he"),
    (["model.clean_above=0.5"], r"head answers with something else; found clean_above null\. Set"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSALS)
def test_what_does_not_fit_is_told_in_four_parts(
    classes: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(RegscaleError, match=message):
        begun(tmp_path, classes, *overrides)


def test_a_place_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="holds no checkpoint; found neither manifest"):
        begun(tmp_path, tmp_path)
    (tmp_path / "x.pt").write_bytes(b"no weights")
    with pytest.raises(RegscaleError, match="cannot be read as a checkpoint"):
        begun(tmp_path, tmp_path / "x.pt")
