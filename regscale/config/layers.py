"""A configuration from its layers: dataclass, defaults, file, `key.sub=value`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regscale.config.schema import Values, check, children, construct
from regscale.errors import RegscaleError

T = TypeVar("T")


def load(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """`schema` filled from the file, its defaults and the overrides, each checked on its own."""
    return load_layers(schema, [*_file_layers(path, ()), *override_layers(overrides)])


def load_layers(schema: type[T], layers: Sequence[tuple[str, Values]]) -> T:
    """`schema` from layers of (where they come from, values), the last one on top."""
    merged: Values = {}
    for where, values in layers:
        merged = overlay(schema, merged, values)
        check(schema, _touched(merged, values), where, "")

    def origin(dotted: str) -> str:
        return next((w for w, values in reversed(layers) if _sets(values, dotted)), layers[0][0])

    made: T = construct(schema, _resolved(merged, layers[0][0]), origin)
    return made


def _touched(merged: Values, layer: Values) -> Values:
    """What a layer says of `merged`, and the kinds that say how to read it."""
    return {
        key: _touched(value, layer.get(key, {}))
        if isinstance(value, dict) and isinstance(layer.get(key, {}), dict)
        else value
        for key, value in merged.items()
        if key in layer or key == "kind"
    }


def _sets(values: Any, dotted: str) -> bool:
    """Whether a layer says something of a key or of what holds it."""
    for key in dotted.split("."):
        if not isinstance(values, dict) or key not in values:
            return not isinstance(values, dict)
        values = values[key]
    return True


def load_values(schema: type[T], values: Values, where: str) -> T:
    """`schema` from plain values, as a manifest holds them."""
    return load_layers(schema, [(where, values)])


def overlay(schema: type, below: Values, above: Values) -> Values:
    """`above` laid over `below`. Another `kind` starts its section afresh; null removes a member
    of a mapping."""
    known = children(schema)
    merged = dict(below)
    for key, value in above.items():
        child, old = known.get(key), merged.get(key)
        if child is not None and child.many and value is None:
            merged[key] = {}  # null empties a mapping
        elif child is None or not isinstance(value, dict):
            merged[key] = value
        elif not child.many:
            merged[key] = _section(child, old or {}, value, key)
        else:
            members = dict(old or {})
            for name, item in value.items():
                if item is None:
                    members.pop(name, None)
                elif isinstance(item, dict):
                    members[name] = _section(child, members.get(name) or {}, item, f"{key}.{name}")
                else:
                    members[name] = item
            merged[key] = members
    return merged


def _section(child: Any, below: Values, above: Values, where: str) -> Values:
    if child.package is not None:
        old = below.get("kind", child.default)
        if "kind" in above and above["kind"] != old:
            below = {}
        elif old is None and "kind" not in above:
            return {**below, **above}
    together = {**below, **above}
    return {**overlay(child.schema(together, where), below, above)}


def _file_layers(path: Path, above: tuple[Path, ...]) -> list[tuple[str, Values]]:
    values = _read(path)
    defaults = values.pop("defaults", [])
    if path.resolve() in above:
        raise RegscaleError(
            f"{path}: defaults",
            "a file cannot be its own default",
            found=" -> ".join(str(p) for p in (*above, path)),
            fix="Remove it from one of these lists.",
        )
    if not isinstance(defaults, list):
        raise RegscaleError(
            f"{path}: defaults", "is a list of files", found=repr(defaults), fix="Write [a.yaml]."
        )
    layers = []
    for name in defaults:
        layers += _file_layers(path.parent / str(name), (*above, path.resolve()))
    return [*layers, (str(path), values)]


def _read(path: Path) -> Values:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise RegscaleError(
            path,
            "there is no such file",
            found=", ".join(near[:12]) or f"no .yaml file in {path.parent}",
            fix="Give the path of a config.",
        ) from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise RegscaleError(
            path, "cannot be read as YAML", found=str(error).replace("\n", " "), fix="Correct it."
        ) from error
    if not isinstance(loaded, dict):
        raise RegscaleError(
            path, "is not a mapping", found=type(loaded).__name__, fix="Write key: value lines."
        )
    return {str(key): value for key, value in loaded.items()}


def override_layers(overrides: Sequence[str]) -> list[tuple[str, Values]]:
    """A layer for each `key.sub=value` of a command line."""
    return [_override(text) for text in overrides]


def _override(text: str) -> tuple[str, Values]:
    key, equals, _ = text.partition("=")
    where = f"command line: {text}"
    if not equals or not key:
        raise RegscaleError(
            where, "is not of the form key.sub=value", found=repr(text), fix="Add '=' and a value."
        )
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RegscaleError(
            where, "cannot be read", found=str(error).replace("\n", " "), fix="Quote the value."
        ) from error
    assert isinstance(values, dict), "a dotted key makes a mapping"
    return where, {str(k): v for k, v in values.items()}


def _resolved(values: Values, where: str) -> Values:
    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise RegscaleError(
            where,
            "an interpolation cannot be resolved",
            found=str(error).splitlines()[0],
            fix="Name a key that exists, as in ${seed}.",
        ) from error
