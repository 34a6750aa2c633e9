"""Shards from a plan, by any number of processes: each is whole or not there, and made once.

Every rank knows the same plan and takes its share of it; the last one to finish joins the indexes.
`OUT/prepare` keeps the plan and what became of each shard.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from regscale.data import index_shard, is_current
from regscale.errors import RegscaleError
from regscale.files import replacing
from regscale.prepare._process import this_process
from regscale.prepare._shards import parallel
from regscale.prepare._tally import Removed, Sample, Tally

log = logging.getLogger(__name__)

STATE = "prepare"
PLAN = "plan.json"

Task = list[Any]  # of what JSON holds


class Packer(Protocol):
    """Travels to other processes."""

    def samples(self, tasks: Sequence[Task]) -> Iterator[Sample | Removed]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Shards by name ("00000.tar", "validation/00000.tar") and what makes their samples."""

    out: Path
    shards: Mapping[str, Sequence[Task]]
    packer: Packer
    settings: Mapping[str, Any]  # all that the bytes depend on
    policy: str  # fail or skip, at damaged samples
    identities: Mapping[str, str] = field(default_factory=dict)  # of encoders, by field


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What all commands that pack shards take."""
    parser.add_argument("--shard-mb", type=float, default=1000.0, help="about so large")
    parser.add_argument("--policy", choices=("fail", "skip"), default="fail", help="at damage")
    parser.add_argument("--workers", type=int, help="processes; all cores by default")


def check(command: str, options: argparse.Namespace) -> None:
    """Refuse what no plan can be made of."""
    if not 0 < options.shard_mb < float("inf"):
        raise RegscaleError(
            f"{command}: --shard-mb",
            "is a positive number of megabytes",
            found=options.shard_mb,
            fix="Try 1000.",
        )


def pack(job: Job, *, workers: int | None) -> bool:
    """Make this rank's shards; whether those of all ranks are there."""
    rank, world_size, _ = this_process()
    claim(job.out, job.settings, {name: len(tasks) for name, tasks in job.shards.items()})
    mine = list(job.shards)[rank::world_size]
    left = [name for name in mine if not finished(job.out, name)]
    if len(left) < len(mine):
        log.info("%s of %s shards are there", f"{len(mine) - len(left):,}", f"{len(mine):,}")
    for name in left:
        replace(_state(job.out, name, "todo"), json.dumps(list(job.shards[name])))
        (job.out / name).parent.mkdir(parents=True, exist_ok=True)
    work = partial(_make, job.out, job.packer, job.policy, dict(job.identities))
    parallel(work, [job.out / name for name in left], workers=workers, what="packing")
    to_come = sum(not finished(job.out, name) for name in job.shards)
    if not to_come:
        _tidy(job.out)
    if to_come:
        text = "rank %s of %s has made its shards; %s of other ranks are to come"
        log.info(text, rank, world_size, f"{to_come:,}")
    return not to_come


def _tidy(out: Path) -> None:
    """Take away what killed processes left."""
    for kind in ("*.part", "*.todo", ".*.tmp"):
        for leftover in (out / STATE).glob(kind):
            leftover.unlink(missing_ok=True)


def claim(out: Path, settings: Mapping[str, Any], shards: Mapping[str, int]) -> None:
    """Write the plan down; refuse a folder that was begun with another one."""
    plan = json.loads(json.dumps({"settings": dict(settings), "shards": dict(shards)}))
    path = out / STATE / PLAN
    if path.exists():
        before = json.loads(path.read_text())
        if before == plan:
            return
        old, new = before["settings"], plan["settings"]
        differ = sorted(key for key in {*old, *new} if old.get(key) != new.get(key)) or ["shards"]
        raise RegscaleError(
            out,
            "was begun with another plan",
            found="; ".join(f"{key}: {old.get(key)}, now {new.get(key)}" for key in differ[:4]),
            fix="Go on with what it was begun with, or choose another folder.",
        )
    there = sorted(out.glob("*.tar")) if out.is_dir() else []
    if there:
        raise RegscaleError(
            out,
            "holds shards that this command did not make",
            found=f"{len(there):,}, the first {there[0].name}",
            fix="Choose another folder.",
        )
    replace(path, json.dumps(plan, indent=1))


def finished(out: Path, name: str) -> bool:
    """Whether a shard is made, indexed and reported, or has come out without samples."""
    if not _state(out, name, "json").exists():
        return False
    return is_current(out / name) if (out / name).exists() else not report_of(out, name)["samples"]


def report_of(out: Path, name: str) -> dict[str, Any]:
    """What became of the tasks of a shard."""
    found: dict[str, Any] = json.loads(_state(out, name, "json").read_text())
    return found


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def _state(out: Path, name: str, kind: str) -> Path:
    return out / STATE / f"{name.removesuffix('.tar').replace('/', '-')}.{kind}"


def _make(
    out: Path, packer: Packer, policy: str, identities: Mapping[str, str], shard: Path
) -> None:
    name = shard.relative_to(out).as_posix()
    todo = _state(out, name, "todo")
    tally = Tally(policy)
    for leftover in todo.parent.glob(f"{todo.stem}.tar.*.part"):
        leftover.unlink(missing_ok=True)
    part = todo.with_name(f"{todo.stem}.tar.{uuid.uuid4().hex[:8]}.part")
    with part.open("wb") as file:
        _fill(file, tally.kept(packer.samples(json.loads(todo.read_text()))))
    if tally.num_samples:
        os.replace(part, shard)
        index_shard(shard, identities=identities)
    else:
        part.unlink()
        shard.unlink(missing_ok=True)
    replace(_state(out, name, "json"), json.dumps(tally.report()))
    todo.unlink(missing_ok=True)


def _fill(file: BinaryIO, samples: Iterator[Sample]) -> None:
    """A tar with nothing in it that depends on the time or the user."""
    try:
        from webdataset import TarWriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise RegscaleError(
            "python -m regscale.prepare",
            "writes shards with webdataset",
            found=error,
            fix="Install it: pip install 'regscale[data]'",
        ) from error
    with TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
        for key, payloads in samples:
            writer.write({"__key__": key, **payloads})
    file.flush()
    os.fsync(file.fileno())
