"""A configuration back into plain values and YAML, kinds written out."""

import dataclasses
from typing import Any

from omegaconf import OmegaConf

from regscale.config.schema import children


def kind_of(config: Any) -> str:
    """The kind of a plug-in's config: the name of the file that defines it."""
    return type(config).__module__.rpartition(".")[2]


def to_values(config: Any) -> dict[str, Any]:
    """Plain values from which `load_values` makes an equal config."""
    cls: type = type(config)
    known = children(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, child = getattr(config, field.name), known.get(field.name)
        if child is None:
            values[field.name] = list(value) if isinstance(value, tuple) else value
        elif child.many:
            values[field.name] = {k: _section(v, child.package) for k, v in value.items()}
        else:
            values[field.name] = _section(value, child.package)
    return values


def _section(config: Any, package: str | None) -> dict[str, Any]:
    return ({"kind": kind_of(config)} if package else {}) | to_values(config)


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values, as of a resolved config, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(values))
