"""Ranks that were started with different configs, code or packages refuse each other."""

import hashlib
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from regscale.cluster import Cluster
from regscale.errors import RegscaleError

PACKAGES = ("torch", "deepspeed")


def same_everywhere(cluster: Cluster, values: dict[str, str]) -> None:
    """Raise on all ranks if a value is not the same on every one. Collective."""
    everyone = cluster.gather(values)
    differing = []
    for name in dict.fromkeys(name for each in everyone for name in each):
        ranks: dict[str, list[str]] = {}
        for rank, each in enumerate(everyone):
            ranks.setdefault(each.get(name, "absent"), []).append(str(rank))
        if len(ranks) > 1:
            differing.append(f"{name} {_told(ranks)}")
    if differing:
        raise RegscaleError(
            "the processes of this run",
            "were started differently",
            found="; ".join(differing),
            fix="Start every process with one command, in one environment and from one copy of "
            "the code.",
        )


def versions() -> dict[str, str]:
    """Of the code and of the packages that take part in a step on every rank."""
    return {"code": code_digest()} | {name: _version(name) for name in PACKAGES}


@cache
def code_digest(root: Path = Path(__file__).parents[1]) -> str:
    """Of the names and contents of regscale's own source files."""
    made = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        made.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        made.update(content)
    return made.hexdigest()[:16]


def digest(text: str) -> str:
    """A short name of a long value, such as the YAML of a config."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _told(ranks: dict[str, list[str]]) -> str:
    """`is A on rank 0, 2 and B on rank 1`, the most common first."""
    order = Counter({value: len(held) for value, held in ranks.items()}).most_common()
    return "is " + " and ".join(f"{value} on rank {_list(ranks[value])}" for value, _ in order)


def _list(ranks: list[str]) -> str:
    return ", ".join(ranks) if len(ranks) <= 8 else f"{', '.join(ranks[:8])} and others"
