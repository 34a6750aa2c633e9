"""Mean and standard deviation of each dimension of entangled tokens: a run's data seen by its
targets.

One pass for all targets whose normalisation is `stats`, in one process; each file is written where
entangle.NAME.stats says.
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
from regscale.cluster import join
from regscale.config import kind_of, load, plugin, to_values
from regscale.data import Source, batches
from regscale.errors import RegscaleError
from regscale.recipe import RunConfig
from regscale.representations import Target
from regscale.representations._stats import write_stats

log = logging.getLogger(__name__)


class Moments(NamedTuple):
    """Of the numbers of each dimension; merged without cancellation (Chan et al. 1979)."""

    num_tokens: int
    mean: Tensor  # (R,) fp64
    squares: Tensor  # (R,) fp64, sums of squared differences from the mean

    def add(self, tokens: Tensor) -> "Moments":
        """With those of tokens (B, K, R) as well."""
        rows = tokens.flatten(0, 1).cpu().double()
        total, mean = self.num_tokens + len(rows), rows.mean(0)
        away = mean - self.mean
        squares = (rows - mean).square().sum(0) + away.square() * self.num_tokens * len(
            rows
        ) / total
        return Moments(total, self.mean + away * len(rows) / total, self.squares + squares)

    @property
    def std(self) -> Tensor:
        """1 where a dimension never varies: it is 0 then, without its mean."""
        std = (self.squares / self.num_tokens).sqrt()
        return torch.where(std > 1e-6 * self.mean.abs(), std, torch.ones_like(std))


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
    device = join(config.device).device
    targets = {name: _target(config, name, device) for name in files}
    found = {name: Moments(0, torch.zeros(()), torch.zeros(())) for name in files}
    for tokens in tokens_of(source, targets, config.seed, options, device=device):
        found = {name: found[name].add(each) for name, each in tokens.items()}
    for name, path in files.items():
        section = config.targets[name]
        facts = {
            "target": json.dumps({"kind": kind_of(section), **to_values(section)}),
            "data": source.fingerprint,
            "num_tokens": str(found[name].num_tokens),
            "regscale": __version__,
        }
        write_stats(path, found[name].mean, found[name].std, facts)
        low, high = float(found[name].std.min()), float(found[name].std.max())
        log.info("%s: %s tokens, std %.3g to %.3g", path, f"{found[name].num_tokens:,}", low, high)


def tokens_of(
    source: Source,
    targets: dict[str, Target],
    seed: int,
    options: argparse.Namespace,
    *,
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:
    """Tokens (B, K, R) of the first samples of the run, stored ones where the data has them."""
    size, workers = options.batch_size, options.num_workers
    stream = batches(source, None, seed=seed, start=0, batch_size=size, num_workers=workers)
    left = count = min(options.num_samples, source.num_samples)
    with tqdm(total=count, unit=" images", disable=None) as progress:
        while left:
            batch = next(stream).to(device)
            made = {}
            for name, target in targets.items():
                stored = (batch.features or {}).get(name)
                if stored is None:
                    stored = target(batch.require("images", by=f"target {name}"))
                made[name] = stored.tokens[:left]
            yield made
            seen = min(left, len(batch.keys))
            left -= seen
            progress.update(seen)


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
