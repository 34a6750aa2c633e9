"""Data: where samples come from, and the one endless sequence that a run reads them in."""

from collections.abc import Sequence
from typing import Protocol

from regscale.types import Batch


class Source(Protocol):
    """A kind is a file here with `Config` and `build(config) -> Source`."""

    num_samples: int
    image_size: tuple[int, int]  # (SH, SW)
    fingerprint: str  # of the samples and their order: a run resumes on the same data only

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The samples at `indices`, for the places `positions` of the run; no noise yet."""
        ...
