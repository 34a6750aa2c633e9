"""Mean and standard deviation of each dimension of entangled tokens: a run's data seen by its
targets.

One pass for all targets whose normalisation is `stats`; under srun or torchrun each process sees
its part of the data. Each file is written where entangle.NAME.stats says.
"""

import argparse
import json
import logging
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from regscale import __version__
from regscale.cluster import connect, join
from regscale.config import kind_of, load, plugin, to_values
from regscale.errors import RegscaleError
from regscale.prepare._seen import first_samples
from regscale.recipe import RunConfig
from regscale.representations import Target
from regscale.representations._stats import write_stats
from regscale.types import Batch

log = logging.getLogger(__name__)


class Moments(NamedTuple):
    """Of the numbers of each dimension; merged without cancellation (Chan et al. 1979)."""

    num_tokens: int
    mean: Tensor  # (R,) fp64
    squares: Tensor  # (R,) fp64, sums of squared differences from the mean

    def merge(self, other: "Moments") -> "Moments":
        """Of the numbers of both."""
        if not other.num_tokens:
            return self
        count = self.num_tokens + other.num_tokens
        away = other.mean - self.mean
        between = away.square() * self.num_tokens * other.num_tokens / count
        mean = self.mean + away * other.num_tokens / count
        return Moments(count, mean, self.squares + other.squares + between)

    @property
    def std(self) -> Tensor:
        """1 where a dimension never varies: it is 0 then, without its mean."""
        std = (self.squares / self.num_tokens).sqrt()
        return torch.where(std > 1e-6 * self.mean.abs(), std, torch.ones_like(std))


NOTHING = Moments(0, torch.zeros(()), torch.zeros(()))


def moments(tokens: Tensor) -> Moments:
    """Those of tokens (B, K, R)."""
    rows = tokens.flatten(0, 1).cpu().double()
    mean = rows.mean(0)
    return Moments(len(rows), mean, (rows - mean).square().sum(0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("config", type=Path, help="a file of configs/: its data and targets")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--num-samples", type=int, default=50_000, help="of the data, at random")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-workers", type=int, default=4)


def run(options: argparse.Namespace) -> None:
    """Write the statistics; a file that is there already is never replaced."""
    config: RunConfig = load(RunConfig, options.config, options.overrides)
    files = {name: Path(e.stats).expanduser() for name, e in config.entangled.items() if e.stats}
    _check(options, files)
    source = plugin("regscale.data", kind_of(config.data)).build(config.data)
    cluster = connect(join(config.device))
    targets = {name: _target(config, name, cluster.device) for name in files}
    seen = first_samples(
        source,
        min(options.num_samples, source.num_samples),
        seed=config.seed,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        cluster=cluster,
    )
    own = dict.fromkeys(files, NOTHING)
    for batch in seen:
        own = {
            name: own[name].merge(moments(tokens_of(batch, name, targets[name]))) for name in own
        }
    parts = cluster.gather(own)
    found = {name: reduce(Moments.merge, (part[name] for part in parts)) for name in files}
    for name, path in files.items():
        section = config.targets[name]
        facts = {
            "target": json.dumps({"kind": kind_of(section), **to_values(section)}),
            "data": source.fingerprint,
            "num_tokens": str(found[name].num_tokens),
            "regscale": __version__,
        }
        stats = found[name].mean, found[name].std
        cluster.from_first(partial(write_stats, path, *stats, facts))
        low, high = float(found[name].std.min()), float(found[name].std.max())
        log.info("%s: %s tokens, std %.3g to %.3g", path, f"{found[name].num_tokens:,}", low, high)


def tokens_of(batch: Batch, name: str, target: Target) -> Tensor:
    """(B, K, R), stored ones where the data has them."""
    stored = (batch.features or {}).get(name)
    if stored is None:
        stored = target(batch.require("images", by=f"target {name}"))
    return stored.tokens


def _target(config: RunConfig, name: str, device: torch.device) -> Target:
    section = config.targets[name]
    target: Target = plugin("regscale.representations", kind_of(section)).build(section)
    return target.to(device)


def _check(options: argparse.Namespace, files: dict[str, Path]) -> None:
    if options.num_samples < 1 or options.batch_size < 1:
        raise RegscaleError(
            "token-stats: --num-samples, --batch-size",
            "are positive",
            found=f"{options.num_samples}, {options.batch_size}",
            fix="Give 1 or more.",
        )
    if not files:
        raise RegscaleError(
            f"{options.config}: entangle",
            "has no target whose normalisation is 'stats'",
            found="no file to write",
            fix="Set entangle.NAME.normalisation=stats and entangle.NAME.stats=FILE.",
        )
    for name, path in files.items():
        if path.exists():
            raise RegscaleError(
                f"entangle.{name}.stats: {path}",
                "exists, and a trained run may depend on it",
                found=f"a file of {path.stat().st_size} bytes",
                fix="Name another file.",
            )
