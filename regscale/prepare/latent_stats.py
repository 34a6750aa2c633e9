"""Mean and standard deviation of each latent channel: a run's data seen by its autoencoder.

One pass over posteriors, unscaled; under srun or torchrun each process sees its part of them. The
variance is that of posterior samples, without drawing any: E[mean^2 + std^2] - E[mean]^2.
"""

import argparse
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from regscale import __version__
from regscale.autoencoders import Autoencoder
from regscale.autoencoders._stats import write_stats
from regscale.cluster import connect, join
from regscale.config import kind_of, load, plugin, to_values
from regscale.errors import RegscaleError
from regscale.prepare._seen import first_samples
from regscale.recipe import RunConfig
from regscale.types import Batch, Moments

log = logging.getLogger(__name__)


class Sums(NamedTuple):
    """Of unscaled posteriors: over samples and places, of the mean and of mean^2 + std^2."""

    first: Tensor  # (C,) fp64
    second: Tensor  # (C,) fp64
    num_places: int
    num_samples: int

    @property
    def mean(self) -> Tensor:
        return self.first / self.num_places

    @property
    def std(self) -> Tensor:
        return (self.second / self.num_places - self.mean.square()).clamp(min=0).sqrt()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("config", type=Path, help="a file of configs/: its data and autoencoder")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--num-samples", type=int, default=10_000, help="of the data, at random")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-workers", type=int, default=4)


def run(options: argparse.Namespace) -> None:
    """Write the statistics; a file that is there already is never replaced."""
    _check(options)
    config: RunConfig = load(RunConfig, options.config, options.overrides)
    source = plugin("regscale.data", kind_of(config.data)).build(config.data)
    package = "regscale.autoencoders"
    autoencoder = plugin(package, kind_of(config.autoencoder)).build(config.autoencoder)
    cluster = connect(join(config.device))
    autoencoder = autoencoder.to(cluster.device)
    count = min(options.num_samples, source.num_samples)
    seen = first_samples(
        source,
        count,
        seed=config.seed,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        cluster=cluster,
    )
    found = total(cluster.gather(total(sums(_moments(autoencoder, batch)) for batch in seen)))
    facts = {
        "autoencoder": json.dumps(
            {"kind": kind_of(config.autoencoder), **to_values(config.autoencoder)}
        ),
        "data": source.fingerprint,
        "num_samples": str(found.num_samples),
        "regscale": __version__,
    }
    cluster.from_first(lambda: write_stats(options.out, found.mean, found.std, facts))
    log.info("%s samples: mean %s, std %s", f"{count:,}", _range(found.mean), _range(found.std))
    log.info("train with autoencoder.stats=%s", options.out)


def sums(moments: Moments) -> Sums:
    """Those of one batch (B, C, H, W)."""
    mean, std = moments
    first = mean.sum((2, 3)).cpu().double().sum(0)
    second = (mean.square() + std.square()).sum((2, 3)).cpu().double().sum(0)
    return Sums(first, second, mean[:, 0].numel(), len(mean))


def total(parts: Iterable[Sums]) -> Sums:
    """Those of all parts together."""
    first, second, places, samples = torch.zeros(()), torch.zeros(()), 0, 0
    for part in parts:
        first, second = first + part.first, second + part.second
        places, samples = places + part.num_places, samples + part.num_samples
    return Sums(first, second, places, samples)


def _moments(autoencoder: Autoencoder, batch: Batch) -> Moments:
    """Stored ones where the data has them."""
    if batch.moments is not None:
        return batch.moments
    return autoencoder.encode(batch.require("images", by="latent_stats"))


def _check(options: argparse.Namespace) -> None:
    if options.num_samples < 1 or options.batch_size < 1:
        raise RegscaleError(
            "latent_stats: --num-samples, --batch-size",
            "are positive",
            found=f"{options.num_samples}, {options.batch_size}",
            fix="Give 1 or more.",
        )
    if options.out.exists():
        raise RegscaleError(
            f"latent_stats: {options.out}",
            "exists, and a trained run may depend on it",
            found=f"a file of {options.out.stat().st_size} bytes",
            fix="Choose another --out.",
        )


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.3f} to {float(values.max()):.3f}"
