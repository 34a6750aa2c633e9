"""Bytes of shards to batches: short reads, borrowed memory, and the precision of stored fields."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from regscale.data import shards
from regscale.data._reader import ALIGNMENT, Reader, Span
from regscale.data._select import Place
from regscale.types import Batch
from tests.data.packing import folder_of, index, npy, pack


def source(root: Path, *fields: str) -> shards.Shards:
    return shards.build(shards.Config(urls=(str(root),), fields=fields, mode="positional"))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return source(folder_of(tmp_path, [3, 2]), "labels").reader


SPANS = [Span(1, 700, 900), Span(0, 0, 1), Span(0, 3, 130)]


def content(reader: Reader, span: Span) -> bytes:
    place: Place = reader.places[span.place]
    return Path(place.url).read_bytes()[span.start : span.start + span.length]


def test_reads_that_return_less_are_continued(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def short(descriptor: int, memory: list[memoryview], at: int) -> int:
        return preadv(descriptor, [memory[0][:100]], at)

    monkeypatch.setattr(os, "preadv", short)
    assert [bytes(part) for part in reader.fetch(SPANS)] == [content(reader, s) for s in SPANS]


def test_borrowed_memory_is_used_again_and_fetched_memory_is_kept(reader: Reader) -> None:
    first, kept = reader.borrow(SPANS), reader.fetch(SPANS)
    again = reader.borrow(SPANS[::-1])
    assert again[0].obj is first[0].obj
    assert [bytes(part) for part in again] == [content(reader, s) for s in SPANS[::-1]]
    assert [bytes(part) for part in kept] == [content(reader, s) for s in SPANS]
    starts = [np.frombuffer(part, np.uint8).ctypes.data for part in again]
    assert all((start - starts[0]) % ALIGNMENT == 0 for start in starts)


def test_a_batch_outlives_the_memory_it_was_read_into(tmp_path: Path) -> None:
    data = source(folder_of(tmp_path, [6], keep=["moments.npy", "cls"]), "moments", "labels")
    first = data.read([0, 1], [0, 1])
    data.read([4, 5], [0, 1])
    again = data.read([0, 1], [0, 1])
    assert first.moments is not None
    assert again.moments is not None
    assert torch.equal(first.moments.mean, again.moments.mean)


@pytest.mark.parametrize(
    "kinds", [("f2", "f2"), ("f2", "f4"), ("f4", "f2"), ("f8", "f4"), (">f2", "f2"), (">f4", ">f4")]
)
def test_stored_floats_of_any_kind_are_the_same_fp32_on_the_device(
    tmp_path: Path, kinds: tuple[str, str]
) -> None:
    values = np.random.default_rng(0).standard_normal((2, 1, 6)).astype(np.float32)
    rows = [each.astype(kind) for each, kind in zip(values, kinds, strict=True)]
    pack(tmp_path / "0.tar", [(f"{i}", {"vit.npy": npy(row)}) for i, row in enumerate(rows)])
    index(tmp_path)
    read: Batch = source(tmp_path, "vit").read([0, 1], [0, 1])
    batch = read.to(torch.device("cpu"))
    assert read.features is not None
    assert batch.features is not None
    halves = kinds == ("f2", "f2")  # as they are, through half as much memory
    assert read.features["vit"].tokens.dtype == (torch.float16 if halves else torch.float32)
    assert batch.features["vit"].tokens.dtype == torch.float32
    stored = np.stack([row.astype(np.float32) for row in rows])
    assert np.array_equal(batch.features["vit"].tokens.numpy(), stored)
