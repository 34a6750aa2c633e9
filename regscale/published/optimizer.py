"""AdamW's state: published by the place of a parameter in the module, in a run by its name."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regscale.errors import RegscaleError
from regscale.published.layout import Shape
from regscale.published.plain import plain, revived

MOMENTS = ("exp_avg", "exp_avg_sq")


class NamedState(NamedTuple):
    """The moments of each parameter that was ever updated, its updates, and the group's values."""

    moments: dict[str, dict[str, Tensor]]
    steps: dict[str, float]
    group: dict[str, Any] | None  # as JSON values, without `params`


def by_name(opt: Mapping[str, Any], shapes: Mapping[str, Shape], where: object) -> NamedState:
    """The state of a published file; `shapes` is in the order of the module's parameters."""
    names = list(shapes)
    groups, state = opt.get("param_groups"), opt.get("state")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(state, dict):
        raise _misfit(where, "an AdamW state with one group", f"keys {', '.join(map(str, opt))}")
    if list(groups[0].get("params", ())) != list(range(len(names))):
        raise _misfit(where, f"{len(names)} parameters", len(groups[0].get("params", ())))
    moments, steps = {}, {}
    for place, entry in state.items():
        if place not in range(len(names)):
            raise _misfit(where, f"the places 0 to {len(names) - 1}", place)
        name = names[place]
        _check(entry, name, shapes[name], where)
        moments[name] = {key: entry[key].float() for key in MOMENTS}
        steps[name] = float(entry["step"])
    group = {key: plain(value, f"opt.{key}") for key, value in groups[0].items() if key != "params"}
    return NamedState(moments, steps, group)


def by_place(state: NamedState, names: Iterable[str]) -> dict[str, Any]:
    """The state as a published file has it. Parameters without an update have none, as in torch."""
    order = list(names)
    group = default_group() if state.group is None else revived(state.group)
    entries = {
        place: {"step": torch.tensor(state.steps[name], dtype=torch.float32), **state.moments[name]}
        for place, name in enumerate(order)
        if state.steps.get(name, 0) > 0 and name in state.moments
    }
    return {"state": entries, "param_groups": [{**group, "params": list(range(len(order)))}]}


def default_group(**changes: Any) -> dict[str, Any]:
    """The group of a torch AdamW, without `params`."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], **changes)
    group: dict[str, Any] = optimizer.state_dict()["param_groups"][0]
    return {key: value for key, value in group.items() if key != "params"}


def _check(entry: Any, name: str, shape: Shape, where: object) -> None:
    wanted = {"step", *MOMENTS}
    if not isinstance(entry, dict) or set(entry) != wanted:
        keys = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise _misfit(where, f"step, exp_avg and exp_avg_sq of {name}", keys)
    for key in MOMENTS:
        if not isinstance(entry[key], Tensor) or tuple(entry[key].shape) != shape:
            found = getattr(entry[key], "shape", type(entry[key]).__name__)
            raise _misfit(where, f"{key} of {name} in shape {shape}", found)


def _misfit(where: object, wanted: str, found: object) -> RegscaleError:
    return RegscaleError(
        f"{where}: opt",
        f"holds {wanted}, if it belongs to these weights",
        found=found,
        fix="Give --no-optimizer to take the weights alone.",
    )
