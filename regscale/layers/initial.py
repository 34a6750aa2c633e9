"""How a parameter begins: a rule, and numbers keyed by (seed, the parameter's name).

A module that owns parameters or buffers carries `initial`, a rule for each of them. So a model
can stand on the meta device until an engine asks for one block at a time, and its start is the
same on any engine and any number of ranks.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod, sqrt

import torch
from torch import Tensor, nn

from regscale import chance

Rule = Callable[[torch.Size, int, str], Tensor]  # (shape, seed, name) -> fp32 on the CPU


def zeros(shape: torch.Size, seed: int, name: str) -> Tensor:  # noqa: ARG001
    return torch.zeros(shape)


def ones(shape: torch.Size, seed: int, name: str) -> Tensor:  # noqa: ARG001
    return torch.ones(shape)


def normal(std: float) -> Rule:
    """Normal numbers of mean 0."""

    def rule(shape: torch.Size, seed: int, name: str) -> Tensor:
        return std * chance.normal(shape, seed=seed, purpose=f"initial/{name}")

    return rule


def xavier_uniform(shape: torch.Size, seed: int, name: str) -> Tensor:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16), kernels
    flattened."""
    bound = sqrt(6 / (prod(shape[1:]) + shape[0]))
    return bound * (2 * chance.uniform(shape, seed=seed, purpose=f"initial/{name}") - 1)


def constant(table: Callable[[], Tensor]) -> Rule:
    """A table that is computed, not drawn."""

    def rule(shape: torch.Size, seed: int, name: str) -> Tensor:  # noqa: ARG001
        return table().reshape(shape)

    return rule


def initial_values(
    module: nn.Module, *, seed: int, prefix: str = "", skip: Collection[nn.Module] = ()
) -> Iterator[tuple[str, Tensor]]:
    """(full name, value) of every parameter and persistent buffer below `module`, one at a time,
    without those below the modules of `skip`."""
    for path, part in _parts(module, prefix, skip):
        for name, tensor in _own(part).items():
            if tensor is None:
                continue
            full = f"{path}.{name}" if path else name
            rules: dict[str, Rule] = getattr(part, "initial", {})
            assert name in rules, f"{full} has no initial rule; set `initial` on its module"
            yield full, rules[name](tensor.shape, seed, full)


@contextmanager
def beginning_with(module: nn.Module, values: Mapping[str, Callable[[], Tensor]]) -> Iterator[None]:
    """Within the block parameters and buffers of these full names begin with these values."""
    kept: list[tuple[nn.Module, dict[str, Rule]]] = []
    for path, part in _parts(module, "", ()):
        full = {name: f"{path}.{name}" if path else name for name in _own(part)}
        given = {name: constant(values[key]) for name, key in full.items() if key in values}
        if given:
            kept.append((part, vars(part)["initial"]))
            vars(part)["initial"] = {**kept[-1][1], **given}
    try:
        yield
    finally:
        for part, before in kept:
            vars(part)["initial"] = before


def _own(part: nn.Module) -> dict[str, Tensor | None]:
    """Parameters and persistent buffers of a module itself."""
    passing = part._non_persistent_buffers_set
    buffers = {name: each for name, each in part._buffers.items() if name not in passing}
    return {**part._parameters, **buffers}


def _parts(
    module: nn.Module, prefix: str, skip: Collection[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    yield prefix, module
    for name, child in module.named_children():
        if child not in skip:
            yield from _parts(child, f"{prefix}.{name}" if prefix else name, skip)


@torch.no_grad()
def materialise(
    module: nn.Module,
    *,
    seed: int,
    device: torch.device,
    prefix: str = "",
    skip: Collection[nn.Module] = (),
) -> None:
    """Give a module on the meta device its storage on `device` and its initial values; not the
    modules of `skip`, which have theirs."""
    for _, part in _parts(module, prefix, skip):
        part.to_empty(device=device, recurse=False)
    tensors = dict(module.named_parameters(prefix)) | dict(module.named_buffers(prefix))
    for name, value in initial_values(module, seed=seed, prefix=prefix, skip=skip):
        tensors[name].copy_(value)
