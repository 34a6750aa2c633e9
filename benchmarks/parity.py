"""Compare regscale with recorded numbers of the published code.

    python -m benchmarks.parity FILE.safetensors [...]

Checks whatever a file holds: one forward, the losses of each sample, gradients, sampler runs, and
recorded training steps. Prints the largest error of each part; exits 1 beyond a tolerance.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regscale import path as diffusion_path
from regscale.cluster import join
from regscale.conditioning import class_label
from regscale.errors import RegscaleError
from regscale.models import AlignPart, Parts, TokenPart
from regscale.models.sit import Config, SiT, build
from regscale.objective import Weights, losses, total
from regscale.parallel import OptimizerConfig
from regscale.parallel._whole import Whole
from regscale.parallel.single import Config as EngineConfig
from regscale.sampling import GuidanceConfig, guided
from regscale.sampling.solvers import euler_maruyama
from regscale.schedule import Config as ScheduleConfig
from regscale.schedule import Schedule
from regscale.training import Ema
from regscale.types import Draw, Entangled, Example, Features, Labels, Losses, Times

SAME = Schedule((ScheduleConfig(),))
TOLERANCES = {  # absolute, except gradients: the norm of the difference over the tensor's norm
    "position table": 1e-6,
    "forward": 1e-5,
    "losses": 1e-5,
    "gradients": 1e-5,
    "zero gradients": 0.0,
    "no true gradient": 1e-5,  # of the largest gradient of that layer's weight
    "no true weight": 2e-5,
    "sample": 1e-5,
    "training losses": 1e-6,
    "training norms": 1e-6,
    "trained weights": 1e-6,
    "averaged weights": 1e-6,
}
# A constant added to every key leaves the softmax as it was, so the last bias of the keys has no
# true gradient: what is recorded is rounding, and Adam makes steps of learning rate * rounding /
# eps of it. It is compared apart. (On one thread the gradients here equal the recorded ones bit
# for bit, and so do the trained weights when AdamW is not fused.)


def has_true_gradient(name: str, like: Tensor, *, qk_norm: bool) -> Tensor:
    """A mask of the entries of a parameter that the loss depends on."""
    mask = torch.ones_like(like, dtype=torch.bool)
    if name.endswith("attn.k_norm.bias"):
        mask[:] = False
    if name.endswith("attn.qkv.bias") and not qk_norm:
        mask.view(3, -1)[1] = False
    return mask


@dataclass(frozen=True, slots=True)
class Record:
    """A file of recorded numbers."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix.`, without it."""
        dot = f"{prefix}."
        return {k.removeprefix(dot): v for k, v in self.tensors.items() if k.startswith(dot)}


def read(path: Path) -> Record:
    """A file with its settings, which are JSON in its metadata."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Record(tensors, json.loads(file.metadata()["config"]))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise RegscaleError(
            path,
            "is not a file of recorded numbers",
            found=error,
            fix="Give a safetensors file with its configuration in the metadata under 'config'.",
        ) from error


def model_of(record: Record) -> SiT:
    """The recorded configuration as a regscale model with the recorded weights."""
    c, state = record.settings["config"], record.part("state")
    hidden = c["hidden_size"]
    width = c["z_dims"][0]
    classes = len(state["y_embedder.embedding_table.weight"]) - 1
    conditioner = class_label.build(class_label.Config(num_classes=classes, names=None))
    parts = Parts(
        latent_shape=(c["in_channels"], c["input_size"], c["input_size"]),
        tokens=(TokenPart(0, 1, width),),
        aligned=(AlignPart(c["encoder_depth"], width, c["projector_dim"], 0, has_patches=True),),
        embedder_slot=conditioner.slot,
        embedder=conditioner.embedder,
    )
    config = Config(
        depth=c["depth"],
        hidden_size=hidden,
        num_heads=c["num_heads"],
        patch_size=c["patch_size"],
        mlp_ratio=len(state["blocks.0.mlp.fc1.bias"]) / hidden,
        qk_norm=c["qk_norm"],
        attention="sdpa" if c.get("fused_attn") else "math",
    )
    model = build(config, parts)
    model.load_state_dict(state)
    return model


def largest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite where either holds a NaN."""
    difference = (a.detach().double() - b.double()).abs()
    return float(difference.nan_to_num(nan=float("inf")).max())


def check_forward(record: Record, model: SiT) -> dict[str, float]:
    """One forward in evaluation mode."""
    part = record.part("forward")
    with torch.no_grad():
        t = part["t"]
        made = model(part["x"], (part["cls_token"][:, None],), t, (t,), Labels(part["y"]))
    projected = made.aligned[0]
    assert projected is not None, "alignment is on"
    errors = (
        largest(made.latents, part["velocity"]),
        largest(made.tokens[0][:, 0], part["cls_velocity"]),
        largest(projected, part["projection"]),
    )
    table = largest(model._places(model.pos_embed.shape[-1]), model.pos_embed[0])
    return {"position table": table, "forward": max(errors)}


def losses_of(model: SiT, part: dict[str, Tensor], settings: dict[str, Any]) -> Losses:
    """The losses of each sample on recorded data and draws; no label is dropped."""
    t, y = part["t"], part["y"]
    features = Features(part["features"][:, :1], part["features"][:, 1:])
    clean = Entangled(part["latents"], (part["cls_token"][:, None],))
    noise = Entangled(part["noise"], (part["cls_noise"][:, None],))
    draw = Draw(Times(t, (t,)), noise, torch.ones(len(y), dtype=torch.bool))
    path = diffusion_path.build(settings.get("path", "linear"))
    return losses(model, Example(clean, (features,), Labels(y)), draw, null=Labels(y), path=path)


def check_losses(record: Record, model: SiT) -> dict[str, float]:
    """The three losses, their sum and the gradients of the sum."""
    part, settings = record.part("loss"), record.settings["objective"]
    made = losses_of(model, part, settings)
    weights = Weights((settings["cls_coeff"],), (settings["proj_coeff"],))
    value = total(made, weights)
    model.zero_grad()
    value.backward()
    aligned = made.alignment[0]
    assert aligned is not None, "alignment is on"
    errors = (
        largest(made.denoising, part["denoising"]),
        largest(made.tokens[0], part["cls_denoising"]),
        largest(aligned.mean(), part["projection"].reshape(())),
        largest(value, part["total"].reshape(())),
    )
    return {"losses": max(errors), **_gradient_errors(model, record.part("grad"))}


def _gradient_errors(model: SiT, recorded: dict[str, Tensor]) -> dict[str, float]:
    qk_norm = any("k_norm" in name for name in recorded)
    relative, zero, rounding = 0.0, 0.0, 0.0
    for name, parameter in model.named_parameters():
        want, made = recorded[name].double(), parameter.grad
        assert made is not None, f"{name} has no gradient"
        true = has_true_gradient(name, want, qk_norm=qk_norm)
        scale = recorded[name.replace(".bias", ".weight")].abs().max()  # of the same layer
        rounding = max(rounding, largest(made * ~true, want * ~true) / float(scale))
        zero = max(zero, largest(made * (true & (want == 0)), torch.zeros_like(want)))
        if float((want * true).norm()) != 0:  # a NaN too
            error = (made - want).norm() / want.norm()
            relative = max(relative, float(error.nan_to_num(nan=float("inf"))))
    return {"gradients": relative, "zero gradients": zero, "no true gradient": rounding}


def check_samples(record: Record, model: SiT) -> dict[str, float]:
    """Each recorded Euler-Maruyama run."""
    errors = {}
    for name, settings in record.settings.get("samplers", {}).items():
        part = record.part(f"sample.{name}")
        y = part["y"]

        def noise(step: int, part: dict[str, Tensor] = part) -> Entangled:
            if step == 0:
                return Entangled(part["xT"].double(), (part["clsT"][:, None].double(),))
            return Entangled(part["noise"][step - 1], (part["cls_noise"][step - 1][:, None],))

        solver = euler_maruyama.build(
            euler_maruyama.Config(num_steps=settings["num_steps"]),
            diffusion_path.build(record.settings["objective"]["path"]),
        )
        null = Labels(torch.full_like(y, record.settings["config"]["num_classes"]))
        field = guided(model, Labels(y), null, guidance_of(settings))
        with torch.no_grad():
            errors[f"sample {name}"] = largest(solver(field, noise, SAME).latents, part["latents"])
    return errors


def guidance_of(settings: dict[str, Any]) -> GuidanceConfig:
    """The published flags: a token scale of 0 means no guidance of the token."""
    interval = (settings.get("guidance_low", 0.0), settings.get("guidance_high", 1.0))
    scale = settings["cfg_scale"]
    token = settings.get("cls_cfg_scale", 0.0) if scale > 1 else 1.0
    return GuidanceConfig(
        scale=max(scale, 1.0), token_scale=token if token > 0 else 1.0, interval=interval
    )


def check_training(record: Record, model: SiT) -> dict[str, float]:
    """Recorded AdamW steps with clipping and averaging."""
    rule, settings = record.settings["optimizer"], record.settings["objective"]
    config = OptimizerConfig(
        learning_rate=rule["lr"],
        betas=tuple(rule["betas"]),
        eps=rule["eps"],
        weight_decay=rule["weight_decay"],
        max_grad_norm=rule["max_grad_norm"],
    )
    decay = record.settings["ema_decay"]
    engine = Whole(model.train(), config, EngineConfig(), join("cpu"))
    ema = Ema(engine.shards(), [decay])
    weights = Weights((settings["cls_coeff"],), (settings["proj_coeff"],))
    values, norms = [], []
    for step in range(len(record.tensors["train.losses"])):
        value = total(losses_of(model, record.part(f"train.{step}"), settings), weights)
        engine.backward(value)
        norms.append(engine.step().grad_norm)
        ema.update()
        values.append(value.detach())
    return {
        "training losses": largest(torch.stack(values), record.tensors["train.losses"]),
        "training norms": largest(torch.stack(norms), record.tensors["train.grad_norms"]),
        **_weight_errors(model.state_dict(), ema.averages[decay], record),
    }


def _weight_errors(
    state: dict[str, Tensor], average: dict[str, Tensor], record: Record
) -> dict[str, float]:
    trained, rounding, averaged = 0.0, 0.0, 0.0
    qk_norm = record.settings["config"]["qk_norm"]
    for name, want in record.part("train.final").items():
        true = has_true_gradient(name, want, qk_norm=qk_norm)
        trained = max(trained, largest(state[name] * true, want * true))
        rounding = max(rounding, largest(state[name] * ~true, want * ~true))
    for name, want in record.part("train.ema").items():
        averaged = max(averaged, largest(average[name], want.flatten()))
    return {"trained weights": trained, "averaged weights": averaged, "no true weight": rounding}


def compare(path: Path) -> dict[str, float]:
    """The largest error of each part that a file holds."""
    record = read(path)
    errors: dict[str, float] = {}
    if record.part("forward"):
        errors |= check_forward(record, model_of(record).eval())
    if record.part("loss"):
        errors |= check_losses(record, model_of(record))
    if record.part("sample"):
        errors |= check_samples(record, model_of(record).eval())
    if record.part("train"):
        errors |= check_training(record, model_of(record))
    return errors


def tolerance(part: str) -> float:
    return TOLERANCES["sample" if part.startswith("sample ") else part]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    torch.set_num_threads(1)  # one order of summation, as recorded
    failed = False
    for path in parser.parse_args().files:
        try:
            errors = compare(path)
        except RegscaleError as error:
            sys.exit(f"error: {error}")
        failed |= not errors
        for part, error in errors.items():
            good = error <= tolerance(part)  # a NaN is not
            failed |= not good
            verdict = "ok" if good else f"BEYOND {tolerance(part):g}"
            print(f"{path.name:40}  {part:24}  {error:.3g}  {verdict}")
        if not errors:
            print(f"{path.name}: holds no part that can be compared")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
