"""Published checkpoints to runs and back: every number survives, every bad input is told."""

import argparse
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from regscale import assemble, export, sample
from regscale.checkpoint import newest
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.published import Architecture, read, shapes
from regscale.recipe import RunConfig
from regscale.training import train
from regscale.types import Labels

TINY = Path(__file__).parent / "reference/reference_checkpoint_tiny.pt"
RECORDED = Path(__file__).parent / "reference/sit_reg_tiny.safetensors"
HEADS = ("--num-heads", "4")
DIGITS = (
    *("data.kind=digits", "autoencoder.kind=identity", "autoencoder.channels=1"),
    *("conditioning.names=digits", "targets.vision.kind=digits_vit", "device=cpu"),
)


def raw(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def assert_same(a: Any, b: Any) -> None:
    """The same values of the same types, tensors bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def run_of(path: Path, to: Path, *arguments: str) -> Path:
    export.main([str(path), "--to", str(to), *arguments])
    return to


def with_moments(content: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint after updates: every parameter but the frozen first has moments."""
    g = torch.Generator().manual_seed(0)
    state = {
        place: {
            "step": torch.tensor(1234.0),
            "exp_avg": torch.randn(x.shape, generator=g),
            "exp_avg_sq": torch.rand(x.shape, generator=g),
        }
        for place, x in enumerate(content["model"].values())
        if place > 0
    }
    return {**content, "opt": {**content["opt"], "state": state}}


@pytest.mark.parametrize("updated", [False, True], ids=["as recorded", "with moments"])
def test_a_published_checkpoint_comes_back_identical(tmp_path: Path, updated: bool) -> None:
    content = with_moments(raw(TINY)) if updated else raw(TINY)
    content["args"].betas = (0.9, 0.95)  # a tuple must stay one
    torch.save(content, tmp_path / "in.pt")
    run = run_of(tmp_path / "in.pt", tmp_path / "runs/tiny", *HEADS)
    export.main([str(run), "--to", str(tmp_path / "back.pt")])
    back = raw(tmp_path / "back.pt")
    assert_same(vars(content.pop("args")), vars(back.pop("args")))
    assert_same(content, back)
    assert list(content["model"]) == list(back["model"])
    assert isinstance(back["model"], OrderedDict)


def test_an_imported_run_computes_what_the_published_code_computed(tmp_path: Path) -> None:
    """Recorded weights as a bare file: heads, depth and sizes are told or asked for."""
    with safe_open(RECORDED, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {k.removeprefix("state."): x for k, x in tensors.items() if k.startswith("state.")}
    torch.save(state, tmp_path / "bare.pt")
    run = run_of(tmp_path / "bare.pt", tmp_path / "runs/bare", *HEADS, "--alignment-depth", "2")
    model = assemble.trained(run, device="cpu").sampler.model
    model.aligning[0] = True
    t = tensors["forward.t"]
    made = model(
        tensors["forward.x"],
        (tensors["forward.cls_token"][:, None],),
        t,
        (t,),
        Labels(tensors["forward.y"]),
    )
    # fp32 with another order of summation, values near 1
    torch.testing.assert_close(made.latents, tensors["forward.velocity"], rtol=0, atol=2e-5)
    velocity = tensors["forward.cls_velocity"]
    torch.testing.assert_close(made.tokens[0].reshape(velocity.shape), velocity, rtol=0, atol=2e-5)


def digits_run(tiny: Any, name: str, num_steps: int) -> Any:
    config = tiny(f"name={name}", f"training.num_steps={num_steps}", "ema.decays=[0.9]")
    train(assemble.job(config))
    return config


def test_training_goes_on_from_a_published_file_to_the_same_bits(tiny: Any, tmp_path: Path) -> None:
    """Six updates, or four, a published file, a new run folder and two: the same run."""
    digits_run(tiny, "whole", 6)
    digits_run(tiny, "half", 4)
    export.main([str(tmp_path / "runs/half"), "--to", str(tmp_path / "half.pt")])
    onwards = ("training.num_steps=6", "training.num_workers=0", "training.preview_every=0")
    run = run_of(tmp_path / "half.pt", tmp_path / "runs/on", *DIGITS, *onwards, "ema.decays=[0.9]")
    train(assemble.job(load(RunConfig, run / "config.yaml")))
    for name in ("whole", "on"):
        export.main([str(tmp_path / "runs" / name), "--to", str(tmp_path / f"{name}.pt")])
    whole, on = raw(tmp_path / "whole.pt"), raw(tmp_path / "on.pt")
    assert on["steps"] == 6
    for key in ("model", "ema", "opt"):
        assert_same(whole[key], on[key])


@pytest.mark.parametrize("rule", ["muon", "adamw8bit"])
def test_a_run_of_another_rule_is_published_with_what_adamw_can_take(
    tiny: Any, tmp_path: Path, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Moments of 8 bits as the fp32 numbers that they stand for; Muon's momentum is left out."""
    train(assemble.job(tiny("name=made", f"optimizer.rule={rule}", "ema.decays=[0.9]")))
    export.main([str(tmp_path / "runs/made"), "--to", str(tmp_path / "made.pt")])
    made, reader = raw(tmp_path / "made.pt"), newest(tmp_path / "runs/made/checkpoints")
    assert reader is not None
    for place, name in enumerate(made["model"]):
        assert torch.equal(made["model"][name], reader.tensor(f"model/{name}"))
        assert torch.equal(made["ema"][name], reader.tensor(f"ema/0.9/{name}"))
        state = made["opt"]["state"].get(place, {})
        matrix = rule == "muon" and name.startswith("blocks.") and name.endswith(".weight")
        assert (not state) == (matrix or name == "pos_embed"), name
        for key in set(state) - {"step"}:
            assert torch.equal(state[key], reader.tensor(f"optimizer/{key}/{name}"))
    assert ("no place for Muon's momentum" in caplog.text) == (rule == "muon")
    onwards = ("training.num_steps=8", "training.num_workers=0", "training.preview_every=0")
    run = run_of(tmp_path / "made.pt", tmp_path / "runs/on", *DIGITS, *onwards, "ema.decays=[0.9]")
    assert train(assemble.job(load(RunConfig, run / "config.yaml"))).step == 8


def test_an_imported_run_is_sampled_by_the_command(tiny: Any, tmp_path: Path) -> None:
    digits_run(tiny, "made", 2)
    export.main([str(tmp_path / "runs/made"), "--to", str(tmp_path / "made.safetensors")])
    run = run_of(
        tmp_path / "made.safetensors",
        tmp_path / "runs/again",
        *(*DIGITS, "--no-optimizer", "sampling.solver.kind=euler", "sampling.solver.num_steps=3"),
    )
    loaded = [assemble.trained(tmp_path / "runs" / n, device="cpu") for n in ("made", "again")]
    a, b = (sample.sample(x, ["3", "7"], seeds=range(2)) for x in loaded)
    assert torch.equal(a, b)
    sample.main(["--checkpoint", str(run), "--class", "3", "--num-images", "1", "--device", "cpu"])
    assert (run / "samples/drawn/3-seed0.png").is_file()


def test_safetensors_hold_the_averages_or_the_weights(tiny: Any, tmp_path: Path) -> None:
    digits_run(tiny, "both", 2)
    run = str(tmp_path / "runs/both")
    export.main([run, "--to", str(tmp_path / "both.pt")])
    both = raw(tmp_path / "both.pt")
    for which, arguments in (("ema", []), ("model", ["--weights", "model"])):
        path = tmp_path / f"{which}.safetensors"
        export.main([run, "--to", str(path), *arguments])
        content = read(path)
        assert content.args is not None
        assert content.args["encoder_depth"] == 1
        assert content.steps == 2
        assert all(torch.equal(content.model[name], both[which][name]) for name in both[which])


def test_a_run_is_exported_while_it_trains(tiny: Any, tmp_path: Path) -> None:
    """Of the newest checkpoint, where pictures are drawn; the run holds its lease meanwhile."""
    made = tmp_path / "ema.safetensors"

    def exporting(step: int) -> None:
        assert (job.folder / "lease.json").exists()
        if step == 3:
            export.main([str(job.folder), "--to", str(made)])

    job = assemble.job(tiny("training.preview_every=1", "training.checkpoint_every=1"))
    job = replace(job, preview=exporting)
    assert train(job).reason == "finished"
    assert read(made).steps in (2, 3)  # the third may be under way


REPA = Architecture(
    depth=2,
    hidden_size=64,
    patch_size=2,
    channels=4,
    mlp_hidden=256,
    num_labels=1001,
    latent_side=8,
    projectors=((48, 768), (48, 40)),
)


def random_state(model: Architecture) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) for name, shape in shapes(model).items()}


def test_repa_has_no_token_and_any_number_of_encoders(tmp_path: Path) -> None:
    torch.save({"ema": random_state(REPA)}, tmp_path / "repa.pt")
    run = run_of(tmp_path / "repa.pt", tmp_path / "runs/repa", *HEADS, "--alignment-depth", "1")
    loaded = assemble.trained(run, device="cpu")
    assert loaded.config.entangled == {}
    assert list(loaded.config.aligned) == ["vision0", "vision1"]
    assert loaded.config.conditioning.names == "imagenet"


def test_official_sit_drops_the_unused_half_and_its_moments(tmp_path: Path) -> None:
    official = Architecture(
        **{f: getattr(REPA, f) for f in ("depth", "hidden_size", "patch_size", "channels")},
        **{f: getattr(REPA, f) for f in ("mlp_hidden", "num_labels", "latent_side")},
        doubled=True,
    )
    state = random_state(official)
    names = {"path_type": "Linear", "prediction": "velocity", "image_size": 64}
    content = {"model": state, "ema": state, "opt": {"state": {}}, "args": names}
    torch.save(content, tmp_path / "sit.pt")
    run = run_of(tmp_path / "sit.pt", tmp_path / "runs/sit", *HEADS)
    model = assemble.trained(run, device="cpu").sampler.model
    assert model.final_layer.linear.weight.shape == (16, 64)
    kept = state["final_layer.linear.weight"].reshape(2, 2, 8, 64)[:, :, :4].reshape(16, 64)
    assert torch.equal(model.final_layer.linear.weight, -kept)


def test_a_file_without_places_gets_them(tmp_path: Path) -> None:
    state = dict(raw(TINY)["ema"])
    places = state.pop("pos_embed")
    torch.save(state, tmp_path / "no-places.pt")
    asked = ("--alignment-depth", "2", "--image-size", "64", *HEADS)
    run = run_of(tmp_path / "no-places.pt", tmp_path / "runs/places", *asked)
    model = assemble.trained(run, device="cpu").sampler.model
    # the published table was computed with numpy's powers
    torch.testing.assert_close(model.pos_embed, places, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("targets={vit: {kind: digits_vit}, b: {kind: digits_vit}}", "entangle.b.slot=1"),
            r"besides cls_projectors2_slot1\.bias, cls_projectors2_slot1\.weight",
        ),
        (
            (
                "targets={vit: {kind: digits_vit}, b: {kind: digits_vit}}",
                *("align.b.depth=2", "align.b.projector=16"),
            ),
            "has one depth in a published model; found 1, 2",
        ),
        (
            ("model.learnable_tokens=1",),
            r"exactly the published parameters; found besides learnable_tokens\. Give a checkpoint",
        ),
        (("model.clean_above=0.25",), r"model\.clean_above: is null in a published model"),
    ],
    ids=["a second slot", "two depths", "a learnable token", "a head of clean latents"],
)
def test_what_the_format_cannot_hold_is_refused(
    tiny: Any, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    train(assemble.job(tiny("name=more", "training.num_steps=1", *overrides)))
    with pytest.raises(RegscaleError, match=message):
        export.main([str(tmp_path / "runs/more"), "--to", str(tmp_path / "more.pt")])
    assert not (tmp_path / "more.pt").exists()


def test_an_optimizer_of_another_kind_is_refused_or_left_out(tmp_path: Path) -> None:
    content = with_moments(raw(TINY))
    del content["opt"]["state"][3]["exp_avg_sq"]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RegscaleError, match=r"exp_avg_sq of t_embedder.mlp.0.weight.*--no-optim"):
        run_of(tmp_path / "other.pt", tmp_path / "runs/other", *HEADS)
    run = run_of(tmp_path / "other.pt", tmp_path / "runs/other", *HEADS, "--no-optimizer")
    assert not any("optimizer" in n for n in assemble.trained(run, device="cpu").reader.names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt", "--to", "run"], "there is no such file or folder"),
        (["tiny.pt", "--to", "run"], "does not tell the number of attention heads"),
        (["tiny.pt", "--to", "run", "--num-heads", "5"], "is a multiple of num_heads"),
        (["tiny.pt", "--to", "run.pt"], "is the new folder of a run"),
        (["tiny.pt", "--to", "full"], "is the new folder of a run.*something there"),
        (
            ["tiny.pt", "--to", "run", "--weights", "ema"],
            "--weights: is for a source that is a run",
        ),
        (
            ["full", "--to", "a.pt", "--num-heads", "4"],
            "--num-heads: is for a source that is a file",
        ),
        (["full", "--to", "a.bin"], "is a new file, .pt or .safetensors.*suffix .bin"),
        (["full", "--to", "a.pt"], "holds no checkpoint"),
        (["full", "--to", "a.pt", "--weights", "ema"], "is for .safetensors"),
        (["full", "--to", "tiny.pt"], "it exists"),
        (["tiny.pt", "--to", "run", "--num-heads", "4", "model.dept=3"], "Did you mean 'depth'"),
        (
            ["tiny.pt", "--to", "run", "--num-heads", "4", "model.depth=2"],
            "Correct --image-size or",
        ),
        (
            ["tiny.pt", "--to", "run", "--num-heads", "4", "--image-size", "128"],
            "pos_embed: has sh",
        ),
    ],
)
def test_every_bad_input_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.pt").symlink_to(TINY)
    Path("full/samples").mkdir(parents=True)
    with pytest.raises(RegscaleError, match=message):
        export.main(arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "tiny.pt"]


def test_the_command_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "regscale.export", str(TINY), "--to", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert "Give --num-heads N." in ended.stderr
    assert "Traceback" not in ended.stderr
