"""A run's checkpoint as the content of a published file, where the format can hold it."""

import logging
from typing import Any

import torch

from regscale.checkpoint import Reader
from regscale.config import kind_of, load_values
from regscale.errors import RegscaleError
from regscale.layers.position import grid_table
from regscale.published.arguments import arguments
from regscale.published.infer import architecture
from regscale.published.layout import Architecture, shapes
from regscale.published.optimizer import MOMENTS, NamedState, by_place, default_group
from regscale.published.plain import plain, revived
from regscale.published.read import Published
from regscale.recipe import RunConfig

log = logging.getLogger(__name__)
KEEP = "Such a run has no published format; keep it as it is."


def from_run(reader: Reader, *, decay: float | None, only: str | None = None) -> Published:
    """Weights, averages of this decay (None: the first), optimizer, arguments and updates.

    `only` 'model' or 'ema' leaves out all tensors but these.
    """
    config = load_values(RunConfig, reader.config, str(reader.folder))
    decays = config.ema.decays
    if decay is not None and decay not in decays:
        raise RegscaleError(
            reader.folder, f"has no average of {decay}", found=list(decays), fix="Choose one."
        )
    names = [name.removeprefix("model/") for name in reader.names() if name.startswith("model/")]
    found = {name: reader.shape(f"model/{name}") for name in names}
    model = architecture(found, f"{reader.folder}: as a published checkpoint it")
    _refuse_other_meaning(reader, config, model)
    names = list(shapes(model))
    kept = reader.progress.get("published", {})
    args = kept.get("args")
    places = {"model": "model", "ema": f"ema/{decays[0] if decay is None else decay}"}
    states = {
        key: {name: reader.tensor(f"{place}/{name}") for name in names}
        for key, place in places.items()
        if only in (None, key)
    }
    group = kept.get("group")
    return Published(
        model=states[only or "model"],
        ema=states[only or "ema"],
        opt=None if only else by_place(_optimizer(reader, config, group), names),
        args=arguments(model, config) if args is None else revived(args),
        steps=reader.step,
    )


def _optimizer(reader: Reader, config: RunConfig, group: Any) -> NamedState:
    held = {name for name in reader.names() if name.startswith("optimizer/")}
    counts = reader.progress["engine"]["optimizer_steps"]
    updated = {name: float(count) for name, count in counts.items() if count}
    steps = {
        name: count
        for name, count in updated.items()
        if {f"optimizer/{key}/{name}" for key in MOMENTS} <= held
    }
    if len(steps) < len(updated):
        text = "%s: the format has no place for Muon's momentum; left out of %s tensors"
        log.warning(text, reader.folder, len(updated) - len(steps))
    moments = {
        name: {key: reader.tensor(f"optimizer/{key}/{name}") for key in MOMENTS} for name in steps
    }
    of_run = default_group(
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
    )
    return NamedState(moments, steps, plain(of_run, "opt") if group is None else group)


def _refuse_other_meaning(reader: Reader, config: RunConfig, model: Architecture) -> None:
    """Weights of the published names and shapes that the published code would misread."""
    depths = sorted({align.depth for align in config.aligned.values()})
    side = (model.latent_side or 0) // model.patch_size
    places = reader.tensor("model/pos_embed")[0, -side * side :]
    square = grid_table(side, side, model.hidden_size)
    sit = kind_of(config.model) == "sit"
    clean = config.model.clean_above if sit else None
    wrong = {
        "model.kind": (not sit, "is sit", kind_of(config.model)),
        "model.clean_above": (clean is not None, "is null", clean),
        "align": (len(depths) > 1, "has one depth", ", ".join(map(str, depths))),
        # published tables were computed in other orders of rounding
        "pos_embed": (
            not torch.allclose(places, square, atol=1e-4),
            "is the table of a square of patches",
            f"another one of {side * side} patches",
        ),
    }
    for key, (is_wrong, what, found) in wrong.items():
        if is_wrong:
            raise RegscaleError(
                f"{reader.folder}: {key}", f"{what} in a published model", found=found, fix=KEEP
            )
