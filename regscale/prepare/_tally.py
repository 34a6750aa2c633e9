"""What became of the samples of a shard: kept, removed by a filter, or damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from regscale.data._images import Unusable
from regscale.errors import RegscaleError

Sample = tuple[str, Mapping[str, bytes]]  # key, payloads by field


class Removed(NamedTuple):
    """A sample that comes into no shard. With `why` it is damaged and told by its name."""

    sample: str
    reason: str
    why: str = ""


def made(
    sample: Callable[[Any], Sample], tasks: Sequence[Sequence[Any]]
) -> Iterator[Sample | Removed]:
    """The sample of each task, which begins with its key; what cannot be read is damaged."""
    for task in tasks:
        try:
            yield sample(task)
        except (Unusable, OSError) as error:
            yield Removed(task[0], "damaged", str(error))


class Tally:
    """Counts what passes; damage ends the work by the policy `fail`."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.keys: set[str] = set()
        self.labels: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.damaged: list[tuple[str, str]] = []

    @property
    def num_samples(self) -> int:
        return len(self.keys)

    def kept(self, made: Iterator[Sample | Removed]) -> Iterator[Sample]:
        for found in made:
            if isinstance(found, Removed):
                self._remove(found)
            elif found[0] in self.keys:
                self._remove(Removed(found[0], "damaged", "its key is there twice"))
            else:
                self.keys.add(found[0])
                if "cls" in found[1]:
                    self.labels[found[1]["cls"].decode()] += 1
                yield found

    def _remove(self, removed: Removed) -> None:
        if removed.why and self.policy == "fail":
            raise damage_fault(removed.sample, removed.why)
        self.removed[removed.reason] += 1
        if removed.why:
            self.damaged.append((removed.sample, removed.why))

    def report(self) -> dict[str, Any]:
        return {
            "samples": self.num_samples,
            "labels": self.labels,
            "removed": self.removed,
            "damaged": self.damaged,
        }


def damage_fault(sample: str, why: str) -> RegscaleError:
    """The end of a run with `--policy fail`."""
    return RegscaleError(
        f"sample {sample}",
        "cannot be packed",
        found=why,
        fix="Restore it and start again, or take --policy skip.",
    )
