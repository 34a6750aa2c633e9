"""Ranks that share a file: they send what they hold to the first of them, which writes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from regscale.checkpoint.format import Phase, Piece, no_phase
from regscale.checkpoint.part import placement, write_part
from regscale.cluster import Cluster

Described = list[tuple[str, tuple[int, ...], int, int, torch.dtype]]


class Group(NamedTuple):
    """Consecutive ranks that share the file of a writer."""

    writer: int
    first: int  # rank
    stop: int


def group_of(rank: int, world_size: int, max_writers: int) -> Group:
    """Groups are as even as they come, and no more than `max_writers`."""
    writers = min(world_size, max_writers)
    writer = rank * writers // world_size
    first, stop = (-(-number * world_size // writers) for number in (writer, writer + 1))
    return Group(writer, first, stop)


def write_together(
    folder: Path,
    pieces: Sequence[Piece],
    cluster: Cluster,
    *,
    max_writers: int,
    phase: Phase = no_phase,
) -> str | None:
    """Write this rank's pieces, or send them to the rank that does. Collective.

    Returns the digest of the index where this rank is a writer. Values travel one piece at a
    time, in the order of the file, so a writer needs memory for one besides its own.
    """
    group = group_of(cluster.rank, cluster.world_size, max_writers)
    if cluster.rank != group.first:
        _send(pieces, group.first, cluster.group)
        phase("part")
        return None
    with _received(group, cluster.group) as others:
        given = [*pieces, *others.pieces]
        return write_part(folder, group.writer, given, fetch=others.fetch, phase=phase)


def _send(pieces: Sequence[Piece], writer: int, group: Any) -> None:
    described: Described = [(p.name, p.shape, p.start, p.stop, p.values.dtype) for p in pieces]
    dist.send_object_list([described], dst=writer, group=group)
    for piece in sorted(pieces, key=placement):
        if piece.start < piece.stop:
            dist.send(_as_bytes(piece.values), dst=writer, group=group)


class _Others:
    """The pieces of the other ranks of a group. Their values are on the meta device."""

    def __init__(self, group: Group, line: Any) -> None:
        self._line = line
        self._sources: dict[int, int] = {}  # id of a piece -> rank
        self.pieces: list[Piece] = []
        for rank in range(group.first + 1, group.stop):
            box: list[Any] = [None]
            dist.recv_object_list(box, src=rank, group=line)
            for name, shape, start, stop, dtype in box[0]:
                values = torch.empty(stop - start, dtype=dtype, device="meta")
                self.pieces.append(Piece(name, shape, start, stop, values))
                self._sources[id(self.pieces[-1])] = rank
        to_come = sorted((p for p in self.pieces if p.start < p.stop), key=placement)
        self._waiting = deque(to_come)

    def fetch(self, piece: Piece) -> Tensor:
        """The values of a piece; those of other ranks are asked for in the order of the file."""
        if id(piece) not in self._sources:
            return piece.values
        assert self._waiting.popleft() is piece, "values come in the order of the file"
        values = torch.empty(piece.stop - piece.start, dtype=piece.values.dtype)
        dist.recv(_as_bytes(values), src=self._sources[id(piece)], group=self._line)
        return values

    def drain(self) -> None:
        """Take what is still to come, so that its senders do not wait for ever."""
        while self._waiting:
            self.fetch(self._waiting[0])


@contextmanager
def _received(group: Group, line: Any) -> Iterator[_Others]:
    others = _Others(group, line)
    try:
        yield others
    finally:
        others.drain()


def _as_bytes(values: Tensor) -> Tensor:
    return values.reshape(-1).view(torch.uint8)
