"""The contract of a data source."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from regscale.types import Batch


class Source(Protocol):
    """A kind is a file in this package with `Config` and `build(config) -> Source`.

    Building is cheap: files are looked at when samples are first asked for.
    """

    num_samples: int
    image_size: tuple[int, int]  # (SH, SW)
    fingerprint: str  # of the samples and their order: a run resumes on the same data only

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The samples at `indices`, for the places `positions` of the run; no noise yet."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A source that is read in an order of its own, as from windows of shards."""

    def order(self, counters: Sequence[int], seed: int) -> list[int]:
        """The samples at these places of the run: every sample once in each epoch."""
        ...


@runtime_checkable
class Bucketed(Protocol):
    """A source of which each batch has pictures of one of several sizes, told by `Batch`."""

    buckets: Mapping[str, Source]  # by name; each of one size
