"""A run that is evaluated: its sampler, and what has to be known of its pictures."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from regscale import __version__, assemble
from regscale.assemble import Loaded
from regscale.cluster import Cluster, connect, join
from regscale.config import Invalid, kind_of, plugin, to_values
from regscale.config.layers import load_layers, override_layers
from regscale.errors import RegscaleError
from regscale.evaluation._references import file_digest
from regscale.evaluation.provenance import Making
from regscale.evaluation.suites import Asked, Suite
from regscale.parallel import DTYPES
from regscale.sampling import GuidanceConfig
from regscale.sampling.many import UNIT

SUITES = "regscale.evaluation.suites"
WAIT_SECONDS = 24 * 3600.0  # a process may wait so long for the others' pictures


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options of everything that draws from a run."""
    add = parser.add_argument
    add("--guidance-scale", type=float, help="of the image; 1 is none; else the run's own")
    add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="times")
    add("--token-guidance-scale", type=float, help="of the entangled tokens")
    add("--token-guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"))
    add("--ema", type=float, help="the decay of the averaged weights")
    add("--batch-size", type=int, default=UNIT, help="images between two rounds of writing")
    add("--unit", type=int, default=UNIT, help="images that go through the network together")
    add("--device", default="auto")


def cluster_of(options: argparse.Namespace) -> Cluster:
    """This process, with a line to the others."""
    if min(getattr(options, "unit", 1), getattr(options, "batch_size", 1)) < 1:
        raise RegscaleError(
            "--unit, --batch-size",
            "are positive",
            found=f"{options.unit}, {options.batch_size}",
            fix="Give 1 or more.",
        )
    return connect(join(options.device), timeout_seconds=WAIT_SECONDS)


def suite_of(name: str, overrides: list[str]) -> Suite:
    """The suite with the settings of a command line."""
    module = plugin(SUITES, name, where="--suite")
    layers = override_layers(overrides) or [("command line", {})]
    try:
        config = load_layers(module.Config, layers)
        return module.build(config)  # type: ignore[no-any-return]
    except Invalid as error:
        raise RegscaleError(
            f"--suite {name}: {error.key}", error.what, found=error.found, fix=error.fix
        ) from error


def guidance_of(loaded: Loaded, options: argparse.Namespace) -> GuidanceConfig:
    """The run's guidance with what the command line changes."""
    changes = {
        "scale": options.guidance_scale,
        "token_scale": options.token_guidance_scale,
        "interval": options.guidance_interval and tuple(options.guidance_interval),
        "token_interval": options.token_guidance_interval
        and tuple(options.token_guidance_interval),
    }
    return with_guidance(
        loaded.config.sampling.guidance, {k: v for k, v in changes.items() if v is not None}
    )


def with_guidance(config: GuidanceConfig, changes: dict[str, Any]) -> GuidanceConfig:
    """Changed; a value that cannot be is told."""
    try:
        return replace(config, **changes)
    except Invalid as error:
        raise RegscaleError(
            f"guidance {error.key}", error.what, found=error.found, fix=error.fix
        ) from error


def load(folder: Path, options: argparse.Namespace) -> Loaded:
    """The run, in averaged weights."""
    return assemble.trained(folder, device=options.device, decay=options.ema)


def making_of(
    loaded: Loaded, folder: Path, suite: Asked, guidance: GuidanceConfig, *, unit: int
) -> Making:
    """Everything that decides what the pictures are."""
    sampling, model = loaded.config.sampling, loaded.sampler.model
    solver = to_values(sampling.solver)
    device, dtype = loaded.sampler.device, DTYPES[sampling.precision]
    steps = solver.pop("num_steps", None)
    diffusion = solver.pop("diffusion", "none")
    others = {k: v for k, v in to_values(sampling).items() if k not in _TOLD} | {"solver": solver}
    for name, entangled in loaded.config.entangled.items():
        own = {k: v for k, v in to_values(entangled).items() if k.startswith(_OF_TOKENS)}
        others |= {name: own} if own else {}
    token_scale = guidance.scale if guidance.token_scale is None else guidance.token_scale
    token_interval = guidance.token_interval or guidance.interval
    tf32 = " with tf32" if sampling.tf32 and device.type == "cuda" else ""
    attention = model.attention_choice(device, dtype)
    return Making(
        sampler=kind_of(sampling.solver),
        steps="adaptive" if steps is None else str(steps),
        diffusion=diffusion,
        sampling=json.dumps(others, sort_keys=True, default=str),
        guidance_scale=guidance.scale,
        guidance_interval=str(list(guidance.interval)),
        token_guidance_scale=token_scale,
        token_guidance_interval=str(list(token_interval)),
        labels=suite.labels,
        seeds=suite.seeds,
        unit=unit,
        precision=f"{sampling.precision}{tf32}",
        attention=f"{attention.backend} ({attention.kernel})",
        checkpoint=f"{folder.name} step {loaded.reader.step} {_hash(loaded)}",
        ema=loaded.decay,
        regscale=__version__,
    )


_TOLD = ("solver", "guidance", "precision", "tf32")
_OF_TOKENS = ("schedule", "guidance")  # what a target says of sampling


def _hash(loaded: Loaded) -> str:
    """Of the manifest, which holds the hashes of all weights."""
    return file_digest(loaded.reader.folder / "manifest.json")
