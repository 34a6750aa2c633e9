"""A run that is evaluated: its sampler, and what has to be known of its pictures."""

import argparse
from dataclasses import replace

from regscale import assemble
from regscale.assemble import Loaded
from regscale.cluster import Cluster, connect, join
from regscale.config import Invalid, plugin
from regscale.config.layers import load_layers, override_layers
from regscale.errors import RegscaleError
from regscale.evaluation.provenance import Making
from regscale.evaluation.suites import Asked, Suite
from regscale.measuring import checkpoint_of, making
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
        suite: Suite = module.build(config)
    except Invalid as error:
        raise RegscaleError(
            f"--suite {name}: {error.key}", error.what, found=error.found, fix=error.fix
        ) from error
    return suite


def load(options: argparse.Namespace, cluster: Cluster) -> Loaded:
    """What was trained, in averaged weights, its tokens guided as the command line has it."""
    loaded = assemble.trained(
        options.run,
        device=options.device,
        decay=options.ema,
        sampling=options.sampling,
        cluster=cluster,
    )
    sampler, names = loaded.sampler, loaded.config.entangled
    own = target_guidance_of(sampler.target_guidance, names, options)
    return replace(loaded, sampler=replace(sampler, target_guidance=own))


def making_of(loaded: Loaded, suite: Asked, guidance: GuidanceConfig, *, unit: int) -> Making:
    """Everything that decides what the pictures are."""
    own = making(loaded.config, loaded.sampler, guidance, decay=loaded.decay, unit=unit)
    checkpoint = checkpoint_of(loaded.run, loaded.reader)
    return replace(own, labels=suite.labels, seeds=suite.seeds, checkpoint=checkpoint)
