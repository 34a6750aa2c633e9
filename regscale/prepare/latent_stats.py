"""Mean and standard deviation of each latent channel: a run's data seen by its autoencoder.

One pass over posteriors, unscaled, in one process. The variance is that of posterior samples,
without drawing any: E[mean^2 + std^2] - E[mean]^2.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from regscale import __version__
from regscale.autoencoders import Autoencoder
from regscale.autoencoders._stats import write_stats
from regscale.cluster import join
from regscale.config import kind_of, load, plugin, to_values
from regscale.data import Source, batches
from regscale.errors import RegscaleError
from regscale.recipe import RunConfig
from regscale.types import Moments

log = logging.getLogger(__name__)


class Summary(NamedTuple):
    """Of unscaled posterior samples."""

    mean: Tensor  # (C,) fp64
    std: Tensor  # (C,) fp64
    num_samples: int


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
    device = join(config.device).device
    count = min(options.num_samples, source.num_samples)
    found = summary(
        posteriors(
            source,
            autoencoder.to(device),
            count,
            device=device,
            seed=config.seed,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
        )
    )
    facts = {
        "autoencoder": json.dumps(
            {"kind": kind_of(config.autoencoder), **to_values(config.autoencoder)}
        ),
        "data": source.fingerprint,
        "num_samples": str(found.num_samples),
        "regscale": __version__,
    }
    write_stats(options.out, found.mean, found.std, facts)
    log.info("%s samples: mean %s, std %s", f"{count:,}", _range(found.mean), _range(found.std))
    log.info("train with autoencoder.stats=%s", options.out)


def posteriors(
    source: Source,
    autoencoder: Autoencoder,
    count: int,
    *,
    device: torch.device,
    seed: int,
    batch_size: int,
    num_workers: int,
) -> Iterator[Moments]:
    """The moments of the first `count` samples of the run, stored ones where the data has them."""
    stream = batches(
        source, None, seed=seed, start=0, batch_size=batch_size, num_workers=num_workers
    )
    left = count
    with tqdm(total=count, unit=" images", disable=None) as progress:
        while left:
            batch = next(stream).to(device)
            moments = batch.moments
            if moments is None:
                moments = autoencoder.encode(batch.require("images", by="latent_stats"))
            moments = Moments(*[tensor[:left] for tensor in moments])
            yield moments
            left -= len(moments.mean)
            progress.update(len(moments.mean))


def summary(moments: Iterator[Moments]) -> Summary:
    """Mean and standard deviation of each channel over samples and places."""
    first = second = torch.zeros(())
    places = samples = 0
    for mean, std in moments:
        first = first + mean.sum((2, 3)).cpu().double().sum(0)
        second = second + (mean.square() + std.square()).sum((2, 3)).cpu().double().sum(0)
        places += mean.shape[0] * mean.shape[2] * mean.shape[3]
        samples += len(mean)
    centre = first / places
    return Summary(centre, (second / places - centre.square()).clamp(min=0).sqrt(), samples)


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
