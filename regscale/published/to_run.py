"""A published file's content as the first checkpoint of a run folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regscale.checkpoint import Piece, Record, save
from regscale.config import to_values, to_yaml
from regscale.errors import RegscaleError
from regscale.published.optimizer import MOMENTS, NamedState
from regscale.published.plain import plain
from regscale.published.read import Published, State
from regscale.recipe import RunConfig
from regscale.training.folder import write_text


def save_run(
    folder: Path,
    content: Published,
    *,
    optimizer: NamedState | None,
    config: RunConfig,
    model: nn.Module,
    fingerprint: str | None,
) -> None:
    """Write the checkpoint and the config. `model` stands on the meta device and says what fits.

    Without an optimizer the run can be sampled but not trained. `fingerprint` is the data's.
    """
    buffers = _buffers(model)
    content = Published(
        model={**buffers, **content.model},
        ema={**buffers, **content.ema},
        args=content.args,
        steps=content.steps or 0,
    )
    _check_fit(content.model, model, folder)
    trainable = [name for name, _ in model.named_parameters()]
    states = [("model", content.model), *[(f"ema/{d}", content.ema) for d in config.ema.decays]]
    pieces = [Piece.whole(f"{key}/{name}", x) for key, state in states for name, x in state.items()]
    if optimizer is not None:
        pieces += _moments(optimizer, {name: content.model[name] for name in trainable})
    record = Record(
        step=content.steps or 0,
        samples=(content.steps or 0) * config.training.batch_size,
        config=to_values(config),
        progress=_progress(content, optimizer, trainable) | {"data": fingerprint},
    )
    save(folder / "checkpoints", pieces, record)
    write_text(folder / "config.yaml", to_yaml(to_values(config)))


def _buffers(model: nn.Module) -> State:
    """The table of places, where a file lacks it."""
    initial: Any = model.initial
    return {name: initial[name](buffer.shape, 0, name) for name, buffer in model.named_buffers()}


def _check_fit(state: State, model: nn.Module, folder: Path) -> None:
    want = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in want | state:
        found = tuple(state[name].shape) if name in state else "no such parameter"
        if want.get(name) != found:
            raise RegscaleError(
                f"{folder}: {name}",
                f"has shape {want.get(name, 'none')} in a run with these settings",
                found=f"{found} in the file",
                fix="Correct --image-size or the overrides of data, autoencoder, targets, model.",
            )


def _moments(optimizer: NamedState, weights: State) -> Iterator[Piece]:
    """Zeros, which take no memory, where a parameter had no update yet."""
    for key in MOMENTS:
        for name, weight in weights.items():
            full, size = f"optimizer/{key}/{name}", weight.numel()
            if name in optimizer.moments:
                yield Piece.whole(full, optimizer.moments[name][key])
            else:
                yield Piece(full, tuple(weight.shape), 0, size, torch.zeros(1).expand(size))


def _progress(
    content: Published, optimizer: NamedState | None, trainable: list[str]
) -> dict[str, Any]:
    """What a training run resumes from, and what a published file holds besides tensors."""
    steps = {} if optimizer is None else optimizer.steps
    return {
        "engine": {
            "updates": content.steps,
            "optimizer_steps": {name: steps.get(name, 0.0) for name in trainable},
            "loss_scale": None,
        },
        "window": {"steps": 0, "sums": [], "skipped": [0.0, 0.0]},
        "published": {
            "args": plain(content.args, "args"),
            "group": optimizer and optimizer.group,
        },
    }
