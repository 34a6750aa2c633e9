"""The format on disk: names, digests, sealed JSON, and what a checkpoint holds.

A logical tensor (`model/<name>`, `ema/0.9999/<name>`, `optimizer/exp_avg/<name>`) is flattened row
by row and stored as pieces [start, stop) in the safetensors files of one or more writers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from regscale.errors import RegscaleError

FORMAT = "regscale-checkpoint"
VERSION = 1
BLOCK_BYTES = 16 * 2**20
MANIFEST = "manifest.json"
RESTORE = "Copy it again from an intact source, or resume from an older checkpoint."

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

Phase = Callable[[str], None]


def no_phase(name: str) -> None:
    """The default of `phase`, which names each stage of a save as it is reached."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The part [start, stop) of a flattened logical tensor of `shape`."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    values: Tensor  # (stop - start,), any device, written from its own memory where that is CPU

    def __post_init__(self) -> None:
        inside = 0 <= self.start <= self.stop <= math.prod(self.shape)
        assert inside, f"{self.name}: [{self.start}, {self.stop}) lies outside {self.shape}"
        assert self.values.numel() == self.stop - self.start, f"{self.name}: values of another size"

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> Piece:
        """All of a tensor in one piece."""
        return cls(name, tuple(tensor.shape), 0, tensor.numel(), tensor.detach().reshape(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a checkpoint says besides its tensors: plain JSON values.

    `partition` tells in words how the tensors were cut; reading does not depend on it.
    """

    step: int
    samples: int
    config: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)
    partition: str = "flat ranges"

    def __post_init__(self) -> None:
        for name in ("config", "progress"):
            _assert_plain(getattr(self, name), name)


def _assert_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, str), f"{where}: JSON would turn the key {key!r} into a string"
            _assert_plain(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _assert_plain(item, where)
    else:
        plain = value is None or isinstance(value, (str, int, float))
        assert plain, f"{where}: {type(value).__name__} is not a JSON value"


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def data_name(writer: int) -> str:
    return f"part-{writer:05d}.safetensors"


def index_name(writer: int) -> str:
    return f"part-{writer:05d}.json"


def digest(data: bytes | memoryview) -> str:
    """xxh3 of 128 bits: it finds damage, it does not resist an attacker."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_of_blocks(blocks: Iterable[str]) -> str:
    """The digest of a file from those of its blocks."""
    return digest("".join(blocks).encode())


def seal(values: dict[str, Any]) -> tuple[bytes, str]:
    """A JSON file whose first member is the digest of all bytes after its line, and that digest."""
    body = json.dumps(values, indent=1, sort_keys=True).encode()[1:]
    return _seal_line(body) + body, digest(body)


def unseal(path: Path, data: bytes) -> tuple[dict[str, Any], str]:
    """The values and the digest of a sealed file; any changed bit is refused."""
    line, body = data[: len(_seal_line(b""))], data[len(_seal_line(b"")) :]
    if line != _seal_line(body):
        raise RegscaleError(
            f"{path}: bytes 0-{len(data)}",
            "does not match the digest in its first line",
            found=f"xxh3 {digest(body)} over {len(body)} bytes",
            fix=RESTORE,
        )
    values: dict[str, Any] = json.loads(data)
    return values, digest(body)


def _seal_line(body: bytes) -> bytes:
    return f'{{"digest": "{digest(body)}",'.encode()


def check_cover(name: str, numel: int, ranges: Iterable[tuple[int, int]], where: Path) -> None:
    """Refuse a tensor whose pieces leave a gap or overlap."""
    reached = 0
    for start, stop in [*sorted(ranges), (numel, numel)]:
        if start != reached:
            raise RegscaleError(
                where,
                f"the pieces of {name} must cover its {numel} elements exactly once",
                found=f"{'a gap' if start > reached else 'an overlap'} at element "
                f"{min(start, reached)}",
                fix="Every range needs one owner; check what each writer was given.",
            )
        reached = stop


def check_same(path: Path, name: str, first: dict[str, Any], other: dict[str, Any]) -> None:
    """Refuse two descriptions of one tensor that differ."""
    if first != other:
        raise RegscaleError(
            path,
            f"all writers must agree on {name}: {first}",
            found=other,
            fix="The ranks run with different configs or code; start them alike.",
        )
