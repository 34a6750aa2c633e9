"""What a checkpoint of a run holds: weights, averages and moments as named flat ranges."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regscale.checkpoint import Piece, Reader
from regscale.errors import RegscaleError
from regscale.parallel import Engine
from regscale.training.ema import Ema

log = logging.getLogger(__name__)


def pieces(engine: Engine, ema: Ema) -> Iterator[Piece]:
    """The ranges that this rank owns, as model/<name>, ema/<decay>/<name> and
    optimizer/<moment>/<name>."""
    for name, shape, start, stop, owner, values in _tensors(engine, ema):
        if owner:
            yield Piece(name, shape, start, stop, values)


def restore(reader: Reader, engine: Engine, ema: Ema) -> None:
    """Write a verified checkpoint into the live tensors. Nothing is written if anything differs."""
    held = set(reader.names())
    for name, shape, *_ in _tensors(engine, ema):
        found = reader.shape(name) if name in held else "no such tensor"
        if found != shape:
            raise RegscaleError(
                f"{reader.folder}: {name}",
                f"does not fit the model, which has shape {shape}",
                found=found,
                fix="Resume with the config of that run, or choose another run name.",
            )
    with torch.no_grad():
        for name, _, start, stop, _, values in _tensors(engine, ema):
            values.copy_(reader.range(name, start, stop))


def _tensors(
    engine: Engine, ema: Ema
) -> Iterator[tuple[str, tuple[int, ...], int, int, bool, Tensor]]:
    for shard in engine.shards():
        values = {f"model/{shard.name}": shard.master}
        values |= {f"ema/{d}/{shard.name}": a[shard.name] for d, a in ema.averages.items()}
        values |= {f"optimizer/{k}/{shard.name}": v for k, v in shard.optimizer.items()}
        for name, tensor in values.items():
            yield name, shard.shape, shard.start, shard.stop, shard.owner, tensor


# A run that resumes must be the same run: these sections decide what its numbers mean.
BINDING = (
    *("seed", "data", "autoencoder", "conditioning", "targets", "entangle", "align", "model"),
    *("path", "times", "ema", "training.batch_size"),
)


# Where data lies and what is done with damage do not matter: the fingerprint of content and order
# is compared. A mode is a matter of order. Statistics of tokens lie in the checkpoint, and guidance
# is a matter of sampling.
FREE = re.compile(
    r"data(\.sources\.[^.]+)*"
    r"\.(root|urls|cache|cache_gib|timeout_seconds|verify|policy|skip_share)"
    r"|entangle\.[^.]+\.(stats|guidance_scale|guidance_interval)"
)


def check_same_run(saved: dict[str, Any], current: dict[str, Any], where: str) -> None:
    """Refuse to resume under settings that make it another run; log other differences."""
    before, after = _flat(saved), _flat(current)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key):
            continue
        change = f"{key}: {before.get(key)} -> {after.get(key)}"
        if not FREE.fullmatch(key) and any(key == b or key.startswith(f"{b}.") for b in BINDING):
            raise RegscaleError(
                where,
                f"was made with another {key}",
                found=change,
                fix="Give it the saved value, or choose another run name.",
            )
        log.info("resuming with a changed setting: %s", change)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
