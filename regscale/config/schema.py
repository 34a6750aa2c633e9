"""What a config dataclass says about each of its fields, and plain values turned into it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regscale.config.slots import Invalid, nearest, plugin
from regscale.errors import RegscaleError

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Child:
    """A field that is itself a section, a plug-in, or a mapping from names to either."""

    package: str | None  # of plug-ins; None for a plain section
    default: str | None  # kind to take where none is written
    section: type | None  # for a plain section
    many: bool  # a mapping

    def schema(self, values: Values, where: str) -> type:
        """The dataclass that `values` must fit."""
        if self.package is None:
            assert self.section is not None, "a child is a plug-in or a section"
            return self.section
        kind = values.get("kind", self.default)
        if kind is None:
            raise RegscaleError(
                where, "has no 'kind'", found=sorted(values), fix=f"Write {where}.kind=..."
            )
        module = plugin(self.package, str(kind), where=f"{where}.kind")
        config: type = module.Config
        return config


_hints = cache(get_type_hints)


@cache
def children(cls: type) -> Mapping[str, Child]:
    """The fields of `cls` that hold sections, by name."""
    found = {}
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        package, hint = field.metadata.get("package"), hints[field.name]
        many = get_origin(hint) is dict
        inner = get_args(hint)[1] if many else hint
        section = inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None
        if package or section:
            found[field.name] = Child(package, field.metadata.get("default"), section, many)
    return found


def members(child: Child, values: Any, where: str) -> Iterator[tuple[str, Values]]:
    """(dotted key, values) of each section below a child."""
    if not isinstance(values, dict):
        raise RegscaleError(
            where, "is a section", found=repr(values), fix="Write its keys below it."
        )
    if not child.many:
        yield where, values
        return
    for name, item in values.items():
        if not isinstance(item, dict):
            raise RegscaleError(
                f"{where}.{name}", "is a section", found=repr(item), fix="Write its keys below it."
            )
        yield f"{where}.{name}", item


def check(cls: type, values: Values, where: str, prefix: str) -> None:
    """Refuse unknown keys and values of a wrong type; `where` says which layer brought them."""
    known = children(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise RegscaleError(
                f"{where}: {prefix}{key}", "is not a key", found=repr(key), fix=nearest(key, names)
            )
    for key, child in known.items():
        if key in values:
            for dotted, item in members(child, values[key], f"{where}: {prefix}{key}"):
                inner = dotted.removeprefix(f"{where}: ")
                rest = {k: v for k, v in item.items() if k != "kind" or child.package is None}
                check(child.schema(item, dotted), rest, where, f"{inner}.")
    plain = {k: v for k, v in values.items() if k not in known and not _interpolated(v)}
    _leaves(cls, plain, lambda _: where, prefix)


def _interpolated(value: Any) -> bool:
    """A value such as ${seed} has a type only when all layers are in place."""
    return isinstance(value, str) and "${" in value


@cache
def _typed(cls: type) -> Any:
    """What checks types: `cls` without its sections, so that no default plug-in is imported to
    read a number."""
    hints, known = _hints(cls), children(cls)
    leaves = [
        (f.name, hints[f.name], dataclasses.field(default=MISSING))
        for f in dataclasses.fields(cls)
        if f.name not in known
    ]
    return OmegaConf.structured(dataclasses.make_dataclass(cls.__name__, leaves))


def _leaves(cls: type, values: Values, origin: Callable[[str], str], prefix: str) -> Values:
    """Values converted to the types of the dataclass's fields."""
    try:
        return _converted(cls, values)
    except OmegaConfBaseException:
        pass  # whose fault it is, each value by itself shows
    for key, value in values.items():
        try:
            _converted(cls, {key: value})
        except OmegaConfBaseException as error:
            raise RegscaleError(
                f"{origin(prefix + key)}: {prefix}{key}",
                "has the wrong type",
                found=repr(value),
                fix=f"Give {_spoken(_hints(cls)[key])}.",
            ) from error
    raise AssertionError("values that fit one by one fit together")


def _converted(cls: type, values: Values) -> Values:
    if not values:
        return {}
    merged: Any = OmegaConf.merge(_typed(cls), values)
    found: Values = {}
    for key in values:
        value = merged[key]
        found[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if isinstance(found[key], list) and get_origin(_hints(cls)[key]) is tuple:
            found[key] = tuple(found[key])
    return found


def _spoken(hint: Any) -> str:
    if get_args(hint) and "Literal" in str(get_origin(hint)):
        return "one of " + ", ".join(repr(a) for a in get_args(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, f"a value of type {hint}".replace("typing.", ""))


def construct(cls: type, values: Values, origin: Callable[[str], str], prefix: str = "") -> Any:
    """The dataclass from checked values; a section's own checks get the full key, and `origin`
    says which layer set it."""
    known = children(cls)
    plain = {key: value for key, value in values.items() if key not in known}
    arguments = _leaves(cls, plain, origin, prefix)
    for key, child in known.items():
        if key not in values:
            continue
        built = {}
        for dotted, item in members(child, values[key], f"{prefix}{key}"):
            rest = {k: v for k, v in item.items() if k != "kind" or child.package is None}
            built[dotted.rpartition(".")[2]] = construct(
                child.schema(item, dotted), rest, origin, f"{dotted}."
            )
        arguments[key] = built if child.many else built[key]
    for field in dataclasses.fields(cls):
        no_default = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if no_default and field.name not in arguments:
            raise RegscaleError(
                f"{origin(prefix + field.name)}: {prefix}{field.name}",
                "is required",
                found="nothing",
                fix="Give a value.",
            )
    try:
        return cls(**arguments)
    except Invalid as error:
        key = f"{prefix}{error.key}"
        raise RegscaleError(
            f"{origin(key)}: {key}", error.what, found=error.found, fix=error.fix
        ) from error
