"""A run that is evaluated: its sampler, and what has to be known of its pictures."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

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
from regscale.sampling.many import UNIT, WAIT_SECONDS
from regscale.sampling.options import add_guidance, target_guidance_of

SUITES = "regscale.evaluation.suites"


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options of everything that draws from a run."""
    add = parser.add_argument
    add_guidance(parser)
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


def load(folder: Path, options: argparse.Namespace) -> Loaded:
    """The run, in averaged weights, with guidance of its tokens as the command line has it."""
    loaded = assemble.trained(folder, device=options.device, decay=options.ema)
    sampler, names = loaded.sampler, loaded.config.entangled
    own = target_guidance_of(sampler.target_guidance, names, options)
    return replace(loaded, sampler=replace(sampler, target_guidance=own))


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
    tokens = zip(loaded.config.entangled.items(), loaded.sampler.target_guidance, strict=True)
    for (name, entangled), own in tokens:
        said = {f"guidance_{key}": value for key, value in asdict(own).items()}
        others[name] = {"schedule": to_values(entangled.schedule), **said}
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


def _hash(loaded: Loaded) -> str:
    """Of the manifest, which holds the hashes of all weights."""
    return file_digest(loaded.reader.folder / "manifest.json")
