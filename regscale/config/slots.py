"""The file name is the registry: kind `sit` of package `regscale.models` is regscale/models/sit.py.

A plug-in module defines `Config`, a frozen dataclass, and `build`, which takes it.
"""

import difflib
import pkgutil
from collections.abc import Iterable
from dataclasses import field
from importlib import import_module
from types import ModuleType
from typing import Any

from regscale.errors import RegscaleError

SHOWN = 30  # names at most


class Invalid(RegscaleError):
    """A section's value that cannot be, where its key in the section is all that is known.

    The loader adds the file and the full key, other callers what they know.
    """

    @property
    def key(self) -> str:
        return self.where


def slot(package: str, default: str) -> Any:
    """A dataclass field that holds the `Config` of one kind of `package`."""
    return field(
        default_factory=lambda: plugin(package, default).Config(),
        metadata={"package": package, "default": default},
    )


def slots(package: str) -> Any:
    """A dataclass field that maps names of the user's choice to `Config`s of `package`."""
    return field(default_factory=dict, metadata={"package": package, "many": True})


def kinds(package: str) -> list[str]:
    """The kinds that a package offers: its public modules, by name."""
    path = import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def plugin(package: str, kind: str, *, where: str = "") -> ModuleType:
    """The module of a kind. Errors name the nearest kind, or the package to install."""
    known = kinds(package)
    where = where or f"{package.rpartition('.')[2]}.kind"
    if kind not in known:
        raise RegscaleError(
            where, "is not a known kind", found=repr(kind), fix=nearest(kind, known)
        )
    try:
        return import_module(f"{package}.{kind}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("regscale"):
            raise
        raise RegscaleError(
            where,
            f"'{kind}' needs the package '{error.name}'",
            found="it is not installed",
            fix=f"pip install {error.name}, or choose another kind: {', '.join(known)}.",
        ) from error


def nearest(name: object, known: Iterable[str]) -> str:
    """A sentence that names the most similar known name, or what there is to choose from."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    more = f" and {len(known) - SHOWN} others" if len(known) > SHOWN else ""
    return f"Choose one of: {', '.join(known[:SHOWN])}{more}."
