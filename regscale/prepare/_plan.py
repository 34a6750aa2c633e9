"""Which picture comes into which shard: a pure function of a sorted listing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from regscale.data._images import SUFFIXES
from regscale.errors import RegscaleError
from regscale.prepare._packing import Task
from regscale.prepare._sources import Entry
from regscale.prepare._tally import Removed, Sample, made

MAX_KEY = 80  # characters, so that no name in a tar is longer than its first header holds
NUM_PROBES = 32  # pictures that tell how large the others become


def keys(names: Sequence[str]) -> list[str]:
    """A key for each name (class/file): letters, digits, _ and -, and no two alike.

    A file that begins with its class keeps its name: n01440764/n01440764_18.JPEG is n01440764_18.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise RegscaleError(
            repeated[0],
            "is there more than once",
            found=f"{len(repeated):,} such names",
            fix="Give each picture a name of its own.",
        )
    plain = [_plain(name) for name in names]
    counts = Counter(key.lower() for key in plain)  # some file systems see no capitals
    return [
        key if counts[key.lower()] == 1 else _marked(key, name)
        for key, name in zip(plain, names, strict=True)
    ]


def _plain(name: str) -> str:
    stem = next((name[: -len(s)] for s in SUFFIXES if name.lower().endswith(s)), name)
    folder, _, base = stem.rpartition("/")
    flat = base if base.startswith(folder.partition("/")[0] + "_") else stem.replace("/", "_")
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", flat)
    return safe if safe == flat and len(safe) <= MAX_KEY else _marked(safe, name)


def _marked(key: str, name: str) -> str:
    return f"{key[: MAX_KEY - 17]}-{_hash(name)[:16]}"


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def tasks_of(entries: Sequence[Entry], *, shuffled: bool) -> list[Task]:
    """[key, label, place] of each picture; shuffled by the hashes of the keys."""
    names = keys([entry.name for entry in entries])
    tasks: list[Task] = [
        [key, entry.label, entry.place] for key, entry in zip(names, entries, strict=True)
    ]
    return sorted(tasks, key=lambda task: _hash(task[0])) if shuffled else tasks


def held_out(tasks: Sequence[Task], number: int) -> set[str]:
    """The keys of the validation split: whatever else is there, a picture's hash decides."""
    order = sorted((_hash(f"validation {task[0]}"), task[0]) for task in tasks) if number else []
    return {key for _, key in order[:number]}


def shards(tasks: Sequence[Task], per_shard: int, *, folder: str = "") -> dict[str, list[Task]]:
    """Tasks by the shard's name, in their order."""
    count = -(-len(tasks) // per_shard)
    return {
        f"{folder}{number:05d}.tar": list(tasks[number * per_shard : (number + 1) * per_shard])
        for number in range(count)
    }


def digest(classes: Iterable[str], tasks: Iterable[Task]) -> str:
    """Of what a source listed, but not of where it lies."""
    made = blake2b("\n".join(classes).encode("utf-8", "backslashreplace"), digest_size=16)
    for key, label, _ in tasks:
        made.update(f"\n{key} {label}".encode())
    return made.hexdigest()


def samples_per_shard(
    tasks: Sequence[Task], sample: Callable[[Task], Sample], *, shard_mb: float
) -> int:
    """So many samples make a shard of about `shard_mb`, judged by pictures from everywhere."""
    step = max(1, len(tasks) // NUM_PROBES)
    probes = made(sample, tasks[::step][:NUM_PROBES])  # damage is told when its turn comes
    sizes = [sum(map(len, each[1].values())) for each in probes if not isinstance(each, Removed)]
    mean = sum(sizes) / len(sizes) if sizes else shard_mb * 1e6
    return max(1, int(shard_mb * 1e6 / (mean + 2048)))  # two headers, a label, and what pads them
