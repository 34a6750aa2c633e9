"""Shards to other shards: samples read strictly, batches decoded ahead, files written whole."""

from __future__ import annotations

import io
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from regscale.data._fields import PICTURES
from regscale.data._images import Unusable, decode
from regscale.data._size import Size
from regscale.data._tar import Member, Read, split_name, walk
from regscale.errors import RegscaleError


class Packed(NamedTuple):
    """A sample as it lies in a shard: its members by field."""

    key: str
    members: dict[str, Member]

    @property
    def picture(self) -> Member | None:
        return next((self.members[name] for name in PICTURES if name in self.members), None)


def samples_of(shard: Path, read: Read, size: int) -> list[Packed]:
    """The samples in their order; any damage is an error. Members of no sample stay behind."""
    samples: dict[str, Packed] = {}
    last = ""
    for found in walk(read, size):
        if not isinstance(found, Member):
            raise damaged(shard, found.byte, found.sample, found.what)
        key, field = split_name(found.name) or ("", "")
        if not key:
            continue
        if key in samples and (key != last or field in samples[key].members):
            raise damaged(shard, found.head, key, "is there twice")
        samples.setdefault(key, Packed(key, {})).members[field] = found
        last = key
    if not samples:
        raise damaged(shard, 0, "", "holds no samples")
    return list(samples.values())


def decoded(
    shard: Path,
    read: Read,
    samples: Sequence[Packed],
    *,
    image_size: Size,
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Sequence[Packed], Tensor]]:
    """(samples, their pictures as (B, 3, SH, SW) uint8); a batch ahead is decoded in threads."""

    def picture(sample: Packed) -> Tensor:
        member = sample.picture
        if member is None:
            has = f"has no picture, only {', '.join(sample.members)}"
            raise damaged(shard, min(m.head for m in sample.members.values()), sample.key, has)
        try:
            payload = read(member.start, member.size)
            return decode(payload, image_size, crop="centre", chance=(0.0, 0.0, 0.0))
        except Unusable as error:
            raise damaged(shard, member.start, sample.key, f"has {error}") from error

    ahead: deque[tuple[Sequence[Packed], list[Future[Tensor]]]] = deque()
    for start in range(0, len(samples), batch_size):
        group = samples[start : start + batch_size]
        ahead.append((group, [pool.submit(picture, sample) for sample in group]))
        if len(ahead) > 1:
            yield _waited(*ahead.popleft())
    while ahead:
        yield _waited(*ahead.popleft())


def _waited(
    group: Sequence[Packed], pictures: Sequence[Future[Tensor]]
) -> tuple[Sequence[Packed], Tensor]:
    return group, torch.stack([each.result() for each in pictures])


def add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    """A member without owner and time: the same content gives the same shard."""
    about = tarfile.TarInfo(name)
    about.size = len(payload)
    tar.addfile(about, io.BytesIO(payload))


def damaged(shard: Path, byte: int, sample: str, what: str) -> RegscaleError:
    """The error to raise for a shard that holds it."""
    return RegscaleError(
        shard,
        "is damaged",
        found=f"byte {byte:,}{f', sample {sample}' if sample else ''}: {what}",
        fix="python -m regscale.prepare verify names all damage; restore the shard.",
    )
