"""The index of shards: places, lengths and checksums in 8 bytes a sample and 8 a field."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from regscale.data import _merged
from regscale.data._index import index_path, index_shard, is_current, merge_folder
from regscale.data._merged import ABSENT, Index, Shard
from regscale.data._tar import BLOCK, Damage, Member, walk
from regscale.errors import RegscaleError
from tests.data.packing import folder_of, index, npy, overwrite, pack, sample


def members(path: Path) -> list[Member]:
    content = path.read_bytes()
    found = walk(lambda at, length: content[at : at + length], len(content))
    return [item for item in found if isinstance(item, Member)]


def payloads(shard: Path, made: Index, row: int) -> dict[str, bytes]:
    content = shard.read_bytes()
    return {c.field: content[c.start : c.start + c.length] for c in made.cells_of(row)}


def damage_of(shard: Path) -> list[Damage]:
    return [damage for _, damage in index_shard(shard).damage]


def test_it_leads_to_every_payload(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(5)]
    samples[3][1].pop("txt")  # type: ignore[attr-defined]
    made = index_shard(pack(tmp_path / "x.tar", samples))
    for row, (_, fields) in enumerate(samples):
        assert payloads(tmp_path / "x.tar", made, row) == fields
        for cell in made.cells_of(row):
            whole = xxhash.xxh3_64_intdigest(fields[cell.field])
            assert cell.checksum == whole & 0xFFFFFFFF
    assert dict(zip(made.fields, made.counts, strict=True))["txt"] == 4
    assert not made.damage


def test_the_merged_index_is_the_indexes_in_their_order(tmp_path: Path) -> None:
    pack(tmp_path / "b.tar", [sample(2), (sample(3)[0], {"json": b"{}", "cls": b"1"})])
    pack(tmp_path / "a.tar", [(sample(0)[0], {"cls": b"0"}), sample(1)])
    pack(tmp_path / "c.tar", [(f"{'long' * 40}", {"txt": b"x"})], format=2)
    index(tmp_path)
    whole = _merged.read(tmp_path / "shards.index")
    assert [(s.name, s.num_samples) for s in whole.shards] == [
        ("a.tar", 2), ("b.tar", 2), ("c.tar", 1),
    ]  # fmt: skip
    row = 0
    for name in ("a", "b", "c"):
        alone = _merged.read(tmp_path / f"{name}.tar.index")
        for place in range(len(alone.rows)):
            assert whole.cells_of(row) == alone.cells_of(place)
            row += 1


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder_of(tmp_path, [3, 2])
    arrays = load_file(tmp_path / "shards.index")
    assert {name: a.shape for name, a in arrays.items()} == {"rows": (5, 2), "cells": (5, 5, 2)}


def test_imagenet_with_six_fields_takes_72_megabytes(tmp_path: Path) -> None:
    """1.28 million samples: 8 bytes each and 8 a field, whatever the keys; and it opens at once."""
    N, fields = 1_281_167, ("jpg", "cls", "json", "moments.npy", "dinov2.npy", "clip.npy")
    shards = tuple(
        Shard(f"{i:05d}.tar", 1 << 30, "0" * 16, "0" * 32, N // 1000) for i in range(999)
    )
    shards += (Shard("00999.tar", 1 << 30, "0" * 16, "0" * 32, N - 999 * (N // 1000)),)
    layout = tuple((f, 1) for f in range(6))
    rows = np.zeros((N, 2), dtype=np.uint32)
    cells = np.zeros((N, 6, 2), dtype=np.uint32)
    made = Index("", shards, fields, (layout,), {}, (), (N,) * 6, rows, cells)
    _merged.write(tmp_path / "shards.index", made)
    read = _merged.read(tmp_path / "shards.index")
    assert read.rows.nbytes + read.cells.nbytes == 8 * N + 8 * 6 * N <= 72e6
    assert (tmp_path / "shards.index").stat().st_size <= 72e6
    assert isinstance(read.cells.base, np.memmap)


def test_damage_is_recorded_with_sample_and_byte(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", [sample(i) for i in range(4)])
    found = members(path)
    lost = found[6]  # the label of sample 1
    overwrite(path, lost.head, bytes(BLOCK))
    zeroed, incomplete = damage_of(path)
    assert zeroed.byte == lost.head
    assert "header of zeros" in zeroed.what
    assert "after sample s00001" in zeroed.what
    assert incomplete == Damage(found[5].head, "has lost 'cls'", "s00001")
    assert len(_merged.read(index_path(path)).rows) == 4


def test_a_cut_on_a_boundary_names_the_sample_before_it(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", [sample(i) for i in range(4)])
    os.truncate(path, members(path)[12].head)
    cut, incomplete = damage_of(path)
    assert "boundary" in cut.what
    assert cut.sample == incomplete.sample == "s00002"
    assert incomplete.what == "has lost 'moments.npy', 'txt', 'vit.npy'"


def test_keys_and_fields_that_come_twice_are_reported_once_and_left_out(tmp_path: Path) -> None:
    twice = [sample(0), sample(1), sample(0)]
    path = pack(tmp_path / "x.tar", twice)
    (damage,) = damage_of(path)
    assert damage.what == "key 's00000' is there twice"
    assert damage.byte == members(path)[10].head
    assert len(_merged.read(index_path(path)).rows) == 2
    path = pack(tmp_path / "y.tar", [("a", {"cls": b"1"}), ("a", {"cls": b"2"})])
    (damage,) = damage_of(path)
    assert (damage.what, damage.sample) == ("field 'cls' is there twice", "a")
    assert payloads(path, _merged.read(index_path(path)), 0) == {"cls": b"1"}


@pytest.mark.parametrize("content", [b"", bytes(10240), b"\x1f\x8b" + bytes(600)])
def test_a_shard_without_samples_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert len(damage_of(tmp_path / "x.tar")) == 1


def test_dots_in_keys_are_explained(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", [(f"img.{i}", {"jpg": b""}) for i in range(70)])
    with pytest.raises(RegscaleError, match=r"more than 64 fields.*A key holds no dot"):
        index_shard(path)


def test_fields_are_labelled_with_their_encoder(tmp_path: Path) -> None:
    labels = {"fields": {"moments.npy": {"identity": "vae-1"}, "vit.npy": {"identity": "vit-1"}}}
    (tmp_path / "shards.json").write_text(json.dumps(labels))
    path = pack(tmp_path / "x.tar", [sample(0)])
    assert index_shard(path).identities == {"moments.npy": "vae-1", "vit.npy": "vit-1"}
    made = index_shard(path, identities={"vit.npy": "vit-2"})
    assert made.identities == {"moments.npy": "vae-1", "vit.npy": "vit-2"}
    assert index_shard(path).identities == made.identities  # the content is the same
    assert merge_folder(tmp_path, [path]).identities == made.identities
    key, fields = sample(0)
    pack(path, [(key, {**fields, "vit.npy": npy(np.zeros(6))})])
    assert index_shard(path).identities["vit.npy"] == "vit-1"


def test_shards_of_different_encoders_are_not_merged(tmp_path: Path) -> None:
    paths = [pack(tmp_path / f"{i}.tar", [sample(i)]) for i in range(2)]
    for i, path in enumerate(paths):
        index_shard(path, identities={"vit.npy": f"vit-{i}"})
    with pytest.raises(RegscaleError, match=r"1\.tar\.index: holds 'vit\.npy' of another encoder"):
        merge_folder(tmp_path, paths)


def test_an_index_is_of_one_content_whatever_the_times(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", [sample(0)])
    assert not is_current(path)
    first = index_shard(path)
    assert is_current(path)
    os.utime(path, (0, 0))
    assert is_current(path)
    assert index_shard(path).shards == first.shards
    overwrite(path, members(path)[3].start + 200, b"\1\2\3")
    later = time.time() + 10  # clocks of file systems tick slowly
    os.utime(path, (later, later))
    assert not is_current(path)
    assert index_shard(path).shards[0].digest != first.shards[0].digest


def test_a_damaged_or_missing_index_says_what_to_run(tmp_path: Path) -> None:
    folder_of(tmp_path, [3])
    path = tmp_path / "shards.index"
    content = path.read_bytes()
    for bad in (b"", content[:100], content[:-1], b"\xff" * 64, content + b"x"):
        path.write_bytes(bad)
        with pytest.raises(RegscaleError, match=r"python -m regscale\.prepare index"):
            _merged.read(path)


def test_a_failed_write_leaves_the_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "x.tar", [sample(0)])
    index_shard(path)
    before = index_path(path).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RegscaleError, match=r"cannot be written; found No space left on device"):
        index_shard(path)
    assert index_path(path).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar", "x.tar.index"]


def test_absent_is_no_length(tmp_path: Path) -> None:
    made = index_shard(pack(tmp_path / "x.tar", [("a", {"cls": b"1"}), ("b", {"txt": b""})]))
    assert [c.field for c in made.cells_of(1)] == ["txt"]
    assert made.cells[:, :, 0].tolist() == [[1, ABSENT], [ABSENT, 0]]
