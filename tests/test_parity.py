"""Agreement with recorded numbers of the published code, through the command that users have."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks import parity
from regscale.errors import RegscaleError

REFERENCE = Path(__file__).parent / "reference"
FILES = sorted(REFERENCE.glob("sit_reg_tiny*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recorded_part_agrees(path: Path) -> None:
    errors = parity.compare(path)
    assert errors, "a file with nothing to compare proves nothing"
    for part, error in errors.items():
        assert error <= parity.tolerance(part), part


def test_the_three_files_hold_every_part() -> None:
    parts = {part for path in FILES for part in parity.compare(path)}
    sampled = {part for part in parts if part.startswith("sample ")}
    assert len(sampled) == 3
    assert parts - sampled == set(parity.TOLERANCES) - {"sample"}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("forward.velocity", "forward"),
        ("loss.total", "losses"),
        ("grad.blocks.1.mlp.fc1.weight", "gradients"),
        ("sample.cfg.latents", "sample cfg"),
        ("train.final.wg_norm.weight", "trained weights"),
        ("train.losses", "training losses"),
    ],
)
@pytest.mark.parametrize("damage", ["shift", "nan"])
def test_a_number_that_differs_is_found(tmp_path: Path, name: str, part: str, damage: str) -> None:
    source = next(p for p in FILES if name.split(".")[0] in parity_parts(p))
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    value = 3e-5 if damage == "shift" else float("nan")
    tensors[name].view(-1)[0] += value * (1000 if name.startswith("grad.") else 1)
    save_file(tensors, tmp_path / "damaged.safetensors", facts)
    errors = parity.compare(tmp_path / "damaged.safetensors")
    assert errors[part] > parity.tolerance(part)


def parity_parts(path: Path) -> set[str]:
    return {name.split(".")[0] for name in parity.read(path).tensors}


def test_the_command_prints_each_part_and_exits_by_the_verdict(tmp_path: Path) -> None:
    bad = parity.read(FILES[0])
    tensors = {k: v.clone() for k, v in bad.tensors.items()}
    tensors["forward.velocity"] += 1
    with safe_open(FILES[0], "pt") as file:
        save_file(tensors, tmp_path / "bad.safetensors", file.metadata())
    command = [sys.executable, "-m", "benchmarks.parity"]
    good = subprocess.run([*command, FILES[0]], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert "forward" in good.stdout
    failed = subprocess.run(
        [*command, tmp_path / "bad.safetensors"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "BEYOND 1e-05" in failed.stdout


def test_gradients_do_not_depend_on_micro_batches() -> None:
    """k micro-batches and one batch: losses to 1e-6, gradients to 1e-5 of each tensor's norm."""
    record = parity.read(FILES[0])
    whole, split = parity.model_of(record), parity.model_of(record)
    part, settings = record.part("loss"), record.settings["objective"]
    weights = parity.Weights((settings["cls_coeff"],), (settings["proj_coeff"],))
    one = parity.total(parity.losses_of(whole, part, settings), weights)
    one.backward()
    sums = 0.0
    for i in range(4):
        row = {k: v[i : i + 1] for k, v in part.items() if len(v) == 4}
        value = parity.total(parity.losses_of(split, row, settings), weights) / 4
        value.backward()
        sums += value.item()
    assert abs(sums - one.item()) < 1e-6
    for (name, a), b in zip(whole.named_parameters(), split.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        mask = parity.has_true_gradient(name, a, qk_norm=False)
        error = torch.linalg.vector_norm((a.grad - b.grad) * mask)
        assert float(error) <= 1e-5 * float(torch.linalg.vector_norm(a.grad)), name


def test_a_file_of_other_sizes_is_compared_too(tmp_path: Path) -> None:
    """Patch 1, another width, 17 classes: numbers of this model itself, then one changed."""
    config = {
        "input_size": 4, "patch_size": 1, "in_channels": 3, "hidden_size": 48, "depth": 2,
        "encoder_depth": 1, "num_heads": 3, "num_classes": 17, "z_dims": [20],
        "projector_dim": 28, "fused_attn": True, "qk_norm": True,
    }  # fmt: skip
    settings = {"config": config, "objective": {"path": "linear"}}
    empty = {"y_embedder.embedding_table.weight": torch.zeros(18, 48)}
    empty |= {"blocks.0.mlp.fc1.bias": torch.zeros(100)}
    record = parity.Record({f"state.{k}": v for k, v in empty.items()}, settings)
    with pytest.raises(RuntimeError, match="Missing key"):
        parity.model_of(record)  # the sizes are read before the weights
    model = made(config)
    g = torch.Generator().manual_seed(0)
    given = {
        "x": torch.randn(3, 3, 4, 4, generator=g),
        "cls_token": torch.randn(3, 20, generator=g),
        "t": torch.rand(3, generator=g),
        "y": torch.tensor([0, 16, 17]),
    }
    out = model(
        given["x"], (given["cls_token"][:, None],), given["t"], (given["t"],),
        parity.Labels(given["y"]),
    )  # fmt: skip
    given |= {
        "velocity": out.latents.detach(),
        "cls_velocity": out.tokens[0][:, 0].detach(),
        "projection": out.aligned[0].detach(),
    }
    tensors = {f"state.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"forward.{k}": v.contiguous() for k, v in given.items()}
    save_file(tensors, tmp_path / "other.safetensors", {"config": json.dumps(settings)})
    errors = parity.compare(tmp_path / "other.safetensors")
    assert errors["forward"] <= 1e-6
    tensors["forward.velocity"] += 1e-3
    save_file(tensors, tmp_path / "other.safetensors", {"config": json.dumps(settings)})
    assert parity.compare(tmp_path / "other.safetensors")["forward"] > 1e-5


def made(config: dict[str, Any]) -> Any:
    """A model of these sizes with no tensor left at zero."""
    from regscale.conditioning import class_label
    from regscale.models import AlignPart, Parts, TokenPart
    from regscale.models.sit import Config, build

    conditioner = class_label.build(class_label.Config(num_classes=17, names=None))
    around = Parts(
        latent_shape=(3, 4, 4),
        tokens=(TokenPart(0, 1, 20),),
        aligned=(AlignPart(1, 20, 28, 0, True),),
        embedder_slot="y_embedder",
        embedder=conditioner.embedder,
    )
    sizes = Config(
        depth=2, hidden_size=48, num_heads=3, patch_size=1, mlp_ratio=100 / 48, qk_norm=True
    )
    model = build(sizes, around)
    g = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=g)
    model.pos_embed.copy_(model._places(48)[None])
    return model


def test_a_file_that_is_no_recording_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(RegscaleError, match="is not a file of recorded numbers"):
        parity.read(tmp_path / "x.safetensors")
