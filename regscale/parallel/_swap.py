"""Other values in the place of a model's weights, for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from regscale.types import Shard


@contextmanager
def swapped(
    shards: Iterable[Shard], values: Iterable[tuple[str, Tensor]], refresh: Callable[[], None]
) -> Iterator[None]:
    """The shards hold `values` until the end of the block; `refresh` follows each change."""
    held = {shard.name: shard.master for shard in shards}
    kept = {name: master.clone() for name, master in held.items()}
    try:
        _write(held, values)
        refresh()
        yield
    finally:
        _write(held, kept.items())
        refresh()


@torch.no_grad()
def _write(held: dict[str, Tensor], values: Iterable[tuple[str, Tensor]]) -> None:
    for name, value in values:
        held[name].copy_(value)
