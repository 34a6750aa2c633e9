"""The kind `shards`: exact, verified, and clear about every kind of damage."""

import json
import logging
import os
import pickle
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regscale.config import Invalid
from regscale.data import NoiseShapes, batches, refuse_stale, shards
from regscale.data._index import index_shard
from regscale.data._tar import BLOCK
from regscale.errors import RegscaleError
from regscale.types import Batch
from tests.data.packing import folder_of, index, npy, overwrite, pack, picture, sample
from tests.data.test_index import members

SHAPES = NoiseShapes(latents=(1, 1, 1), tokens=())
ALL = ("images", "labels", "captions", "moments", "vit")


def source(root: Path, *fields: str, **options: Any) -> shards.Shards:
    options = {"image_size": 8, "mode": "positional"} | options
    return shards.build(shards.Config(urls=(str(root),), fields=fields or ALL, **options))


def one(root: Path, fields: Mapping[str, bytes], *names: str, **options: Any) -> Batch:
    """The batch of a single sample that is packed, indexed and read."""
    shutil.rmtree(root / "one", ignore_errors=True)
    pack(root / "one" / "0.tar", [("key", fields)])
    index(root / "one")
    return source(root / "one", *names, **options).read([0], [0])


# What a batch holds


def test_a_batch_holds_what_was_packed(tmp_path: Path) -> None:
    batch = source(folder_of(tmp_path, [3, 4])).read([5, 0, 5], [10, 11, 12])
    assert batch.keys == ("s00005", "s00000", "s00005")
    assert batch.positions.tolist() == [10, 11, 12]
    assert batch.labels is not None
    assert batch.labels.tolist() == [5, 0, 5]
    assert batch.captions == ("caption 5", "caption 0", "caption 5")
    rng = np.random.default_rng(5)
    moments = np.abs(rng.standard_normal((2, 8, 4, 4))).astype(np.float16)
    assert batch.moments is not None
    assert batch.moments.mean.shape == batch.moments.std.shape == (3, 4, 4, 4)
    assert batch.moments.mean.dtype == torch.float16
    assert np.array_equal(batch.moments.mean[0].numpy(), moments[0, :4])
    assert np.array_equal(batch.moments.std[2].numpy(), moments[0, 4:])
    assert batch.features is not None
    assert batch.features["vit"].tokens.shape == (3, 1, 6)
    assert batch.features["vit"].patches is None
    assert batch.images is not None
    assert batch.images.dtype == torch.uint8
    pixels = np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), pixels)


def test_only_wanted_fields_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, [3])
    data, lengths = source(tmp_path, "labels"), []
    preadv = os.preadv
    data.read([0], [0])

    def counted(descriptor: int, memory: list[memoryview], at: int) -> int:
        lengths.append(sum(map(len, memory)))
        return preadv(descriptor, memory, at)

    monkeypatch.setattr(os, "preadv", counted)
    assert data.read([1], [0]).images is None
    assert lengths == [BLOCK + 1]


def test_patches_are_a_field_of_their_own(tmp_path: Path) -> None:
    fields = {"vit.npy": npy(np.ones(6)), "vit.patches.npy": npy(np.zeros((9, 6), np.float16))}
    batch = one(tmp_path, fields, "vit", "vit.patches")
    assert batch.features is not None
    assert batch.features["vit"].tokens.shape == (1, 1, 6)
    assert batch.features["vit"].patches is not None
    assert batch.features["vit"].patches.shape == (1, 9, 6)


def test_labels_and_captions_come_from_json_too(tmp_path: Path) -> None:
    about = {"label": 7, "captions": ["a", "b", "c"]}
    pack(tmp_path / "0.tar", [("key", {"json": json.dumps(about).encode(), "txt": b"t"})])
    index(tmp_path)
    data = source(tmp_path, "labels", "captions")
    seen = [data.read([0], [position]).captions for position in range(40)]
    assert {caption for captions in seen for caption in captions or ()} == {"a", "b", "c"}
    assert seen == [data.read([0], [position]).captions for position in range(40)]
    batch = one(tmp_path, {"json": b'{"cls": 3, "caption": "d"}'}, "labels", "captions")
    assert batch.labels is not None
    assert (batch.labels.tolist(), batch.captions) == ([3], ("d",))


def test_a_flip_turns_the_picture_and_takes_the_second_row(tmp_path: Path) -> None:
    folder_of(tmp_path, [1])
    plain = source(tmp_path).read([0] * 30, range(30))
    turned = source(tmp_path, flip=True, captions_name_sides=False).read([0] * 30, range(30))
    assert plain.images is not None
    assert turned.images is not None
    assert turned.moments is not None
    assert turned.features is not None
    flipped = (turned.images != plain.images).flatten(1).any(1)
    assert 5 < int(flipped.sum()) < 25
    assert torch.equal(turned.images[flipped], plain.images[flipped].flip(-1))
    rng = np.random.default_rng(0)
    rows = np.abs(rng.standard_normal((2, 8, 4, 4))).astype(np.float16)
    tokens = rng.standard_normal((2, 1, 6)).astype(np.float16)
    for i, second in enumerate(flipped.long().tolist()):
        assert np.array_equal(turned.moments.mean[i].numpy(), rows[second, :4])
        assert np.array_equal(turned.features["vit"].tokens[i].numpy(), tokens[second])
    with pytest.raises(
        RegscaleError, match=r"'moments\.npy' is one row; data\.flip needs a second"
    ):
        one(tmp_path, {"moments.npy": npy(np.ones((8, 4, 4)))}, "moments", flip=True)


def test_a_flip_is_refused_beside_captions_that_may_name_sides(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="flip: would turn left to right, which captions may name"):
        source(tmp_path, "images", "captions", flip=True)
    source(tmp_path, "images", "labels", flip=True)


def test_a_random_crop_is_keyed_by_the_place_in_the_run(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", [("key", {"png": picture(0, size=40)})])
    index(tmp_path)
    data = source(tmp_path, "images", crop="random")
    first, again = data.read([0] * 6, range(6)), data.read([0] * 6, range(6))
    assert first.images is not None
    assert again.images is not None
    assert torch.equal(first.images, again.images)
    assert len({image.numpy().tobytes() for image in first.images}) > 3
    with pytest.raises(Invalid, match="cannot be random with fields that were computed"):
        shards.Config(urls=("x",), fields=("images", "moments"), crop="random")


# The identity of stored fields


def test_a_stale_field_names_stored_and_current_identity(tmp_path: Path) -> None:
    labels = {"fields": {"moments.npy": {"identity": "vae-1"}}}
    (tmp_path / "shards.json").write_text(json.dumps(labels))
    data = source(folder_of(tmp_path, [2]), "moments", "vit")
    assert data.identities == {"moments": "vae-1"}
    refuse_stale(data.identities, {"moments": "vae-1"}, where="x")
    with pytest.raises(RegscaleError, match="stored: vae-1; current: vae-2"):
        refuse_stale(data.identities, {"moments": "vae-2"}, where="x")
    with pytest.raises(RegscaleError, match="stored: no identity; current: vit-1"):
        refuse_stale(data.identities, {"vit": "vit-1"}, where="x")


# F15: damage


BAD_FIELDS = {
    "undecodable": ("images", {"jpg": b"\xff\xd8\xff" + b"x" * 99}, "'jpg' is"),
    "no picture": ("images", {"jpg": b"<html>"}, "'jpg' is no JPEG, PNG or WebP"),
    "cut picture": ("images", {"png": picture(0, size=64)[:400]}, "'png' is a damaged picture"),
    "json": ("labels", {"json": b"{"}, "'json' is no json"),
    "json list": ("labels", {"json": b"[1]"}, "'json' is json that is no object"),
    "no label": ("labels", {"json": b'{"a": 1}'}, "json with 'a', no 'label'"),
    "class": ("labels", {"cls": b"cat"}, "'cls' is b'cat', no class number"),
    "text": ("captions", {"txt": b"\xff\xfe"}, "'txt' is no text in UTF-8"),
    "pickle": ("vit", {"vit.npy": npy(np.array([{}, 1], dtype=object))}, "pickled objects"),
    "no npy": ("vit", {"vit.npy": b"PK\3\4" * 20}, "'vit.npy' is no array that NumPy wrote"),
    "cut npy": ("vit", {"vit.npy": npy(np.ones(6))[:-1]}, r"47 bytes of an array \(6,\)"),
    "shape": ("moments", {"moments.npy": npy(np.ones((7, 2, 2)))}, r"shape \(7, 2, 2\)"),
    "integers": ("vit", {"vit.npy": npy(np.ones(6, np.int64))}, "an array of int64"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_bad_field_is_named_with_sample_and_byte(tmp_path: Path, name: str) -> None:
    field, fields, message = BAD_FIELDS[name]
    with pytest.raises(RegscaleError, match=message) as caught:
        one(tmp_path, fields, field)
    assert "0.tar: sample key at byte 512 is damaged" in str(caught.value)


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    began = time.process_time()  # whatever else runs here
    with pytest.raises(RegscaleError, match="pixels"):
        one(tmp_path, {"png": bomb}, "images")
    assert time.process_time() - began < 2


def test_missing_fields_are_found_before_the_first_batch(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(6)]
    del samples[4][1]["txt"]  # type: ignore[attr-defined]
    pack(tmp_path / "0.tar", samples)
    index(tmp_path)
    message = (
        r"0\.tar: sample s00004 has no 'txt' or 'json', which data.fields names; "
        r"it has png, cls, moments\.npy, vit\.npy"
    )
    with pytest.raises(RegscaleError, match=message):
        _ = source(tmp_path).num_samples
    assert source(tmp_path, "images").num_samples == 6


def damaged_folder(root: Path, how: str) -> Path:
    """Forty samples in four shards, of which one is damaged before it is indexed."""
    folder_of(root, [10] * 4)
    path = root / "00002.tar"
    found = members(path)
    if how == "cut inside":
        os.truncate(path, found[48].start + 10)
    elif how == "cut on a boundary":
        os.truncate(path, found[45].head)
    elif how == "zeroed header":
        overwrite(path, found[21].head, bytes(BLOCK))
    elif how == "empty":
        os.truncate(path, 0)
    elif how == "another type":
        path.write_bytes(b"\x1f\x8b" + bytes(5000))
    elif how == "twice":
        pack(path, [*(sample(i) for i in range(20, 30)), sample(20)])
    index(root)
    return root


DAMAGE = {
    "cut inside": r"[\d,]+, sample s00029: is cut inside member 's00029.moments.npy'",
    "cut on a boundary": r"[\d,]+, sample s00028: is cut on the boundary of a member",
    "zeroed header": r"[\d,]+, sample s00024: has a header of zeros.*\(after sample s00024\)",
    "empty": "0: is empty",
    "another type": "0: is no tar archive but a gzip file",
    "twice": r"[\d,]+, sample s00020: key 's00020' is there twice",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_of_a_tar_is_refused_with_shard_byte_and_sample(tmp_path: Path, how: str) -> None:
    with pytest.raises(RegscaleError, match=rf"00002\.tar: byte {DAMAGE[how]}"):
        _ = source(damaged_folder(tmp_path, how)).num_samples


@pytest.mark.parametrize("how", ["cut inside", "zeroed header", "twice"])
def test_a_share_of_damage_may_be_passed_over(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No epoch is shorter for it: a damaged sample's place is taken by its neighbour."""
    data = source(damaged_folder(tmp_path, how), policy="skip", skip_share=0.2)
    with caplog.at_level(logging.WARNING):
        loader = batches(data, SHAPES, seed=0, start=0, batch_size=10)
        keys = [key for _ in range(4) for key in next(loader).keys]
    assert data.num_samples == len(keys) == 40
    bad = {"cut inside": 1, "zeroed header": 1, "twice": 0}[how]
    assert len(set(keys)) == 40 - bad
    assert data.num_skipped == bad
    assert "00002.tar" in caplog.text
    if bad:
        lost = {f"s{i:05d}" for i in range(40)} - set(keys)
        assert f"sample {lost.pop()}" in caplog.text
    with pytest.raises(RegscaleError, match="damaged places in 40 samples"):
        _ = source(tmp_path, policy="skip", skip_share=0.01).num_samples


def flip_bit(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_is_noticed_in_every_field(tmp_path: Path) -> None:
    folder_of(tmp_path, [200, 1])
    path = tmp_path / "00000.tar"
    for member in members(path)[500:505]:
        flip_bit(path, member.start + member.size - 1)
        field = member.name.partition(".")[2]
        message = rf"sample s00100 at byte {member.start:,} is damaged: field '{field}' differs"
        with pytest.raises(RegscaleError, match=message):
            source(tmp_path).read([100], [0])
        flip_bit(path, member.start + member.size - 1)
    assert source(tmp_path).read([100], [0]).keys == ("s00100",)


def test_skipping_is_a_pure_function_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder_of(tmp_path, [100])
    path = tmp_path / "00000.tar"
    flip_bit(path, members(path)[5 * 99].start + 50)
    data = source(tmp_path, policy="skip", skip_share=0.02)
    assert data.read([98, 99, 1], [7, 8, 9]).keys == ("s00098", "s00000", "s00001")
    assert data.num_skipped == 1
    assert "sample s00099 at byte" in caplog.text
    assert "passed over at place 8 of the run (1 of 2 samples read" in caplog.text
    for _ in range(2):
        data.read([99], [8])
    with pytest.raises(RegscaleError, match=r"damage in 4 of .* more than data\.skip_share allows"):
        data.read([99], [8])


# F16: a shard changed under its index


def test_a_shard_that_changed_its_size_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, [3, 3])
    pack(tmp_path / "00001.tar", [sample(i) for i in range(7)])
    data = source(tmp_path, policy="skip")
    with pytest.raises(RegscaleError, match=r"00001\.tar: has changed since it was indexed"):
        data.read([0, 5], [0, 1])


def test_a_shard_that_kept_its_size_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, [3])
    pack(tmp_path / "00000.tar", [sample(i) for i in (1, 0, 2)])
    with pytest.raises(RegscaleError, match="another beginning or end"):
        source(tmp_path, policy="skip", verify=False).read([0], [0])


def test_a_swap_in_the_middle_of_a_large_shard_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, [120])
    order = [*range(59), 60, 59, *range(61, 120)]
    pack(tmp_path / "00000.tar", [sample(i) for i in order])
    with pytest.raises(RegscaleError, match=r"differs from its checksum|has changed"):
        source(tmp_path).read([59], [0])


def test_shards_beside_the_index_are_not_passed_over(tmp_path: Path) -> None:
    folder_of(tmp_path, [3, 3])
    pack(tmp_path / "00002.tar", [sample(7)])
    with pytest.raises(RegscaleError, match=r"its index does not know; found 1, the first 00002"):
        _ = source(tmp_path).num_samples
    (tmp_path / "00002.tar").unlink()
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(RegscaleError, match=r"lacks shards of its index; found 1, the first 00000"):
        _ = source(tmp_path).num_samples


# F17 and F19: shards that vanish, reads that stall


def test_a_shard_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    folder_of(tmp_path, [3, 3])
    data = source(tmp_path)
    data.read([0], [0])
    path, hidden = tmp_path / "00001.tar", tmp_path / "hidden"
    path.rename(hidden)
    timer = threading.Timer(0.3, hidden.rename, [path])
    timer.start()
    assert data.read([5], [0]).keys == ("s00005",)
    timer.join()


def test_a_shard_that_stays_away_is_a_clear_failure(tmp_path: Path) -> None:
    folder_of(tmp_path, [3, 3])
    data = source(tmp_path, policy="skip", skip_share=0.9)
    data.reader.retry_seconds = (0.0, 0.0)
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(RegscaleError, match=r"00001\.tar: cannot be read after 3 tries; found No"):
        data.read([0, 5], [0, 1])


def test_a_stalled_read_is_an_error_in_time(tmp_path: Path) -> None:
    folder_of(tmp_path, [3, 3])
    data = source(tmp_path)
    assert data.read([0], [0]).keys == ("s00000",)
    (tmp_path / "00001.tar").unlink()
    os.mkfifo(tmp_path / "00001.tar")  # opening it waits for a writer for ever
    data.reader.timeout_seconds = 0.3
    with pytest.raises(RegscaleError, match=r"00001\.tar: a read stalled for 0\.3 seconds"):
        data.read([5], [1])
    os.close(os.open(tmp_path / "00001.tar", os.O_RDWR | os.O_NONBLOCK))


# Which shards


def test_urls_are_folders_globs_ranges_and_shards(tmp_path: Path) -> None:
    folder_of(tmp_path, [1, 2, 3, 4])

    def keys(*urls: str) -> tuple[str, ...]:
        config = shards.Config(urls=urls, fields=("labels",), mode="positional")
        data = shards.build(config)
        return data.read(range(data.num_samples), range(data.num_samples)).keys

    everything = tuple(f"s{i:05d}" for i in range(10))
    assert keys(str(tmp_path)) == keys(f"{tmp_path}/") == keys(f"{tmp_path}/*.tar") == everything
    assert keys(f"{tmp_path}/00003.tar", f"{tmp_path}/00000.tar") == (*everything[6:], "s00000")
    assert keys(f"{tmp_path}/{{00001..00002}}.tar") == everything[1:6]
    with pytest.raises(RegscaleError, match="names a shard twice"):
        keys(str(tmp_path), f"{tmp_path}/00000.tar")
    with pytest.raises(RegscaleError, match="matches no shard of the index"):
        keys(f"{tmp_path}/x*.tar")


def test_a_folder_without_an_index_says_what_to_run(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", [sample(0)])
    with pytest.raises(RegscaleError, match=r"has no shards\.index; found 1 shards.*prepare index"):
        _ = source(tmp_path).num_samples
    with pytest.raises(RegscaleError, match="cannot be read as a folder of shards"):
        _ = source(tmp_path / "none").num_samples


def test_the_fingerprint_is_of_content_and_order(tmp_path: Path) -> None:
    prints = [source(folder_of(tmp_path / "a", [3, 3])).fingerprint]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert source(tmp_path / "b").fingerprint == prints[0]
    prints.append(source(tmp_path / "b", mode="window", cache=str(tmp_path / "c")).fingerprint)
    prints.append(source(folder_of(tmp_path / "c", [4, 2])).fingerprint)
    pack(tmp_path / "b" / "00001.tar", [sample(i) for i in (3, 4, 6)])
    index_shard(tmp_path / "b" / "00001.tar")
    index(tmp_path / "b")
    prints.append(source(tmp_path / "b").fingerprint)
    assert len(set(prints)) == 4


# F18: every sample exactly once


@pytest.fixture(scope="module")
def twenty_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data"), [5, 9, 1, 8], keep=["cls"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 3]), st.integers(1, 6)),
        min_size=1,
        max_size=4,
    ),
    mode=st.sampled_from(["positional", "window"]),
)
def test_every_sample_comes_once_an_epoch_over_stops_ranks_and_workers(
    twenty_three: Path,
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[int, int, int]],
    mode: str,
) -> None:
    """A run that is stopped anywhere and goes on with other ranks and workers."""
    data = source(
        twenty_three, "labels", mode=mode, window=2, cache=str(twenty_three.parent / "cache")
    )
    keys: list[str] = []
    position = 0
    for ranks, workers, steps in parts:
        loaders = [
            batches(
                data, SHAPES, seed=3, start=position, batch_size=4,
                rank=rank, world_size=ranks, num_workers=workers,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        for _ in range(steps):
            read = [next(loader) for loader in loaders]
            keys += [key for batch in read for key in batch.keys]
            places = [p for batch in read for p in batch.positions.tolist()]
            assert places == list(range(position, position + 4))
            position += 4
        del loaders
    epochs = [keys[start : start + 23] for start in range(0, len(keys), 23)]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    whole = data.order(range(len(keys)), 3)
    assert keys == [f"s{i:05d}" for i in whole]


def test_it_travels_to_a_spawned_worker(tmp_path: Path) -> None:
    data = source(folder_of(tmp_path, [3]))
    data.read([0], [0])
    assert pickle.loads(pickle.dumps(data)).read([2], [0]).keys == ("s00002",)


def test_the_first_batch_deep_in_a_run_comes_at_once(tmp_path: Path) -> None:
    folder_of(tmp_path, [40] * 20, keep=["cls"])
    seconds = []
    for start in (0, 800 * 10_000 + 400):
        began = time.process_time()
        data = source(tmp_path, "labels")
        next(batches(data, SHAPES, seed=0, start=start, batch_size=32))
        seconds.append(time.process_time() - began)
    assert max(seconds) < 1


def test_a_fault_in_a_worker_is_the_same_message(tmp_path: Path) -> None:
    folder_of(tmp_path, [8])
    flip_bit(tmp_path / "00000.tar", members(tmp_path / "00000.tar")[0].start + 50)
    loader = batches(source(tmp_path), SHAPES, seed=0, start=0, batch_size=8, num_workers=1)
    with pytest.raises(RegscaleError, match=r"sample s00000 at byte 512 is damaged") as caught:
        next(loader)
    assert "Traceback" not in str(caught.value)
