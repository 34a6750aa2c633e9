"""Window mode: whole shards through the node's cache, in an order that reads few at a time."""

import io
import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from regscale.data import NoiseShapes, batches, shards
from regscale.data import _order as order_module
from regscale.data._window import Ahead, Windows, refuse_small
from regscale.errors import RegscaleError
from tests.data.packing import folder_of, index, overwrite

SHAPES = NoiseShapes(latents=(1, 1, 1), tokens=())


def windowed(url: str, cache: Path, **options: object) -> shards.Shards:
    config = shards.Config(urls=(url,), fields=("labels",), cache=str(cache), **options)  # type: ignore[arg-type]
    return shards.build(config)


# The order


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    width=st.integers(1, 5),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_every_sample_comes_once_an_epoch(
    counts: list[int], width: int, seed: int, epoch: int
) -> None:
    windows, N = Windows(counts, width), sum(counts)
    run = windows.indices(range(epoch * N, (epoch + 1) * N), seed)
    assert sorted(run) == list(range(N))
    place = N // 2
    assert Windows(counts, width).indices([epoch * N + place], seed) == [run[place]]


def test_only_the_shards_of_a_window_are_read_together() -> None:
    windows = Windows([10] * 20, 4)
    for start in range(0, 400, 40):
        run = windows.indices(range(start, start + 40), 0)
        together = {sample // 10 for sample in run}
        assert len(together) == 4
        assert run != sorted(run)
        if start:
            assert set(windows.near(start - 1, 0)[4:]) == together
            assert set(windows.near(start, 0)[:4]) == together
    assert windows.indices(range(200), 0) != windows.indices(range(200, 400), 0)
    assert windows.indices(range(200), 0) != windows.indices(range(200), 1)


def test_deep_in_a_large_data_set_the_order_is_there_at_once() -> None:
    windows = Windows([10_000] * 100_000, 16)  # a billion samples
    began = time.process_time()
    windows.indices(range(10**12, 10**12 + 256), 0)
    assert time.process_time() - began < 1


def test_above_the_limit_positional_reads_take_two_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, [3] * 6, keep=["cls"])
    config = shards.Config(urls=(str(tmp_path),), fields=("labels",), mode="positional")
    assert shards.build(config).windows is None
    monkeypatch.setattr(shards, "FLAT_LIMIT", 17)
    data = shards.build(config)
    assert data.windows is not None
    assert sorted(data.order(range(18), 0)) == list(range(18))
    assert order_module.FLAT_LIMIT == 20_000_000


# The next window


def test_the_next_window_is_asked_for_once_and_its_failure_is_left_to_the_reader() -> None:
    asked: list[int] = []
    done = threading.Event()

    def copy(shard: int) -> None:
        asked.append(shard)
        if shard == 1:
            done.set()
            raise FileNotFoundError

    ahead = Ahead(copy)
    for _ in range(3):
        ahead.ask([0, 1])
        done.wait(5)
        ahead.thread.join()
    assert asked == [0, 1]


# A run from a store


def test_a_run_from_a_store_reads_what_a_run_from_a_disk_reads(tmp_path: Path) -> None:
    folder_of(tmp_path / "disk", [5, 9, 1, 8, 3], keep=["cls"])
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "disk").iterdir():
        store.pipe(f"/data/{path.name}", path.read_bytes())
    disk = windowed(str(tmp_path / "disk"), tmp_path / "c1", mode="window", window=2)
    remote = windowed("memory://data", tmp_path / "c2", window=2)
    assert remote.windowed
    assert remote.fingerprint == disk.fingerprint
    runs = []
    for data in (disk, remote):
        loader = batches(data, SHAPES, seed=5, start=7, batch_size=4)
        runs.append([key for _ in range(12) for key in next(loader).keys])
    assert runs[0] == runs[1]
    assert len(list((tmp_path / "c2").glob("*.tar"))) == 5


def test_a_copy_that_does_not_fit_its_index_is_refused_and_not_kept(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "d", [2], keep=["cls"]) / "00000.tar"
    content = path.read_bytes()
    for changed in (content + bytes(512), content[:-512], bytes(512) + content[512:]):
        path.write_bytes(changed)
        data = windowed(str(tmp_path / "d"), tmp_path / "c", mode="window")
        with pytest.raises(RegscaleError, match=r"00000\.tar: has changed since it was indexed"):
            data.read([0], [0])
    path.write_bytes(content)
    data = windowed(str(tmp_path / "d"), tmp_path / "c", mode="window")
    assert data.read([0], [0]).keys == ("s00000",)


def test_a_shard_that_leaves_a_store_is_a_clear_failure(tmp_path: Path) -> None:
    folder_of(tmp_path / "d", [2, 2], keep=["cls"])
    data = windowed(str(tmp_path / "d"), tmp_path / "c", mode="window", window=1)
    data.reader.retry_seconds = (0.0,)
    (tmp_path / "d" / "00001.tar").unlink()
    with pytest.raises(RegscaleError, match=r"00001\.tar: cannot be read after 2 tries"):
        data.read([3], [0])


class StoreError(Exception):
    """As stores have them: no OSError."""


class Unsteady(MemoryFileSystem):
    """A store that fails, or closes early, as often as it is told."""

    protocol = "unsteady"
    store: ClassVar[dict[str, Any]] = {}
    failures = early = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("unsteady:"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if mode != "rb" or not path.endswith(".tar"):
            return file
        if Unsteady.failures > 0:
            Unsteady.failures -= 1
            raise StoreError("503 slow down")
        if Unsteady.early > 0:
            Unsteady.early -= 1
            return ClosesEarly(file.read(), file.size)
        return file


class ClosesEarly(io.BytesIO):
    """Half of a file that says it is whole."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content[: size // 2])
        self.size = size


@pytest.fixture
def unsteady(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> shards.Shards:
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    monkeypatch.setattr(Unsteady, "store", {})
    folder_of(tmp_path / "disk", [3, 2], keep=["cls"])
    for path in (tmp_path / "disk").iterdir():
        fsspec.filesystem("unsteady").pipe(f"/data/{path.name}", path.read_bytes())
    data = windowed("unsteady://data", tmp_path / "cache")
    data.reader.retry_seconds = (0.0, 0.0)
    return data


@pytest.mark.parametrize("how", ["failures", "early"])
def test_a_store_that_fails_twice_is_waited_for(
    unsteady: shards.Shards, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(Unsteady, how, 2)
    assert unsteady.read([4, 0], [0, 1]).keys == ("s00004", "s00000")
    assert getattr(Unsteady, how) == 0


def test_a_store_that_never_recovers_is_a_clear_failure(
    unsteady: shards.Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unsteady, "failures", 99)
    message = r"data/00001\.tar: cannot be read after 3 tries; found 503 slow down"
    with pytest.raises(RegscaleError, match=message):
        unsteady.read([4], [0])


def test_a_copy_that_stays_short_is_told_as_the_copy_and_not_the_shard(
    unsteady: shards.Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unsteady, "early", 99)
    whole = unsteady.selection.places[1].shard.size
    message = (
        rf"00001\.tar: cannot be read after 3 tries; found a short copy: "
        rf"{whole // 2:,} of {whole:,} bytes came to .*/cache"
    )
    with pytest.raises(RegscaleError, match=message):
        unsteady.read([4], [0])
    assert not list(unsteady.cache.folder.glob("*00001.tar*"))


def test_a_store_that_stalls_is_an_error_in_time(
    unsteady: shards.Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    class Stalls(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            goes_on.wait(100)
            return b""

    unsteady.reader.timeout_seconds = 0.2
    monkeypatch.setattr(Unsteady, "_open", lambda *_, **__: Stalls())
    began = time.monotonic()
    with pytest.raises(RegscaleError, match=r"00001\.tar: a read stalled for 0\.2 seconds"):
        unsteady.read([4], [0])
    assert time.monotonic() - began < 50
    goes_on.set()


def test_a_copy_that_another_process_does_not_go_on_with_is_an_error_in_time(
    unsteady: shards.Shards,
) -> None:
    place = unsteady.selection.places[1]
    stuck, goes_on = threading.Event(), threading.Event()

    def stop() -> None:
        stuck.set()
        goes_on.wait(10)

    writer = threading.Thread(target=unsteady.cache.copy, args=(place.url, place.shard, stop))
    writer.start()
    stuck.wait(10)
    unsteady.reader.timeout_seconds = 0.2
    with pytest.raises(RegscaleError, match=r"00001\.tar: a read stalled for 0\.2 seconds"):
        unsteady.read([4], [0])
    goes_on.set()
    writer.join()
    assert unsteady.read([4], [0]).keys == ("s00004",)


def test_an_index_that_cannot_be_copied_is_a_clear_failure(
    unsteady: shards.Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, path: str, mode: str = "rb", **options: object) -> None:
        raise StoreError("403 forbidden")

    monkeypatch.setattr(Unsteady, "_open", fail)
    with pytest.raises(RegscaleError, match=r"data/shards\.index: cannot be .* found 403 forbid"):
        _ = windowed("unsteady://data", tmp_path / "other").num_samples


def test_a_share_of_damage_is_passed_over_in_windows_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty shard and a damaged sample: an epoch has its length, and who is lost is told."""
    folder_of(tmp_path / "d", [5] * 4, keep=["cls"])
    os.truncate(tmp_path / "d" / "00001.tar", 0)
    index(tmp_path / "d")
    content = (tmp_path / "d" / "00002.tar").read_bytes()
    overwrite(tmp_path / "d" / "00002.tar", content.index(b"s00012.cls") + 512, b"x")
    options = {"mode": "window", "window": 2, "policy": "skip", "skip_share": 0.1}
    data = windowed(str(tmp_path / "d"), tmp_path / "c", **options)
    loader = batches(data, SHAPES, seed=0, start=0, batch_size=5)
    keys = [key for _ in range(3) for key in next(loader).keys]
    there = {f"s{i:05d}" for i in (*range(5), *range(10, 20))}
    assert set(keys) == there - {"s00012"}
    assert "00001.tar: byte 0: is empty" in caplog.text
    assert "sample s00012 at byte" in caplog.text


# A cache that is too small


def test_a_cache_below_two_windows_is_refused_with_what_would_do(tmp_path: Path) -> None:
    folder_of(tmp_path / "d", [2] * 6, keep=["cls"])
    size = (tmp_path / "d" / "00000.tar").stat().st_size
    options = {"mode": "window", "window": 2}

    def made(bytes_: int) -> shards.Shards:
        return windowed(str(tmp_path / "d"), tmp_path / "c", cache_gib=bytes_ / 2**30, **options)

    assert made(4 * size).num_samples == 12
    message = (
        r"data\.cache_gib: does not hold two windows .* two of data\.window=2 shards of up to "
        r".* GiB take .* GiB\. Raise data\.cache_gib to 1, or lower data\.window to 1\."
    )
    with pytest.raises(RegscaleError, match=message):
        _ = made(4 * size - 1).num_samples
    with pytest.raises(RegscaleError, match=r"Raise data\.cache_gib to 1\.$"):
        _ = made(2 * size - 1).num_samples


def test_a_cache_that_holds_all_shards_does_for_any_window() -> None:
    refuse_small(100, [10] * 10, 16)
    with pytest.raises(RegscaleError, match="does not hold two windows"):
        refuse_small(99, [10] * 10, 16)


def test_a_cache_of_two_windows_copies_each_shard_once_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder_of(tmp_path / "d", [4] * 8, keep=["cls"])
    size = (tmp_path / "d" / "00000.tar").stat().st_size
    data = windowed(
        str(tmp_path / "d"), tmp_path / "c", mode="window", window=2, cache_gib=4 * size / 2**30
    )
    with caplog.at_level(logging.DEBUG, logger="regscale.data._cache"):
        for start in range(0, 32, 4):
            data.read(data.order(range(start, start + 4), 0), range(start, start + 4))
            data.ahead.thread.join()
            time.sleep(0.02)  # clocks of file systems tick slowly
    copied = [record.args[0] for record in caplog.records if "copied" in record.msg]  # type: ignore[index]
    next_epoch = {f"{tmp_path}/d/{i:05d}.tar" for i in data.windows.near(31, 0)[2:]}  # type: ignore[union-attr]
    assert len(set(copied[:8])) == 8
    assert set(copied[8:]) <= next_epoch
    held = [path.stat().st_size for path in (tmp_path / "c").iterdir()]
    assert sum(held) <= 4 * size


def test_no_more_copies_are_held_open_than_a_window_has(tmp_path: Path) -> None:
    """An evicted copy takes room on the disk for as long as a process has it open."""
    folder_of(tmp_path / "d", [2] * 6, keep=["cls"])
    data = windowed(str(tmp_path / "d"), tmp_path / "c", mode="window", window=2)
    data.read(range(12), range(12))
    copies = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    assert len([path for path in copies if path.startswith(str(tmp_path / "c"))]) == 2


# Resume


def _train(folder: str, cache: str, log: str) -> None:
    """A run that reads slowly and writes down what it has read."""
    loader = batches(windowed(folder, Path(cache), **WINDOW), SHAPES, **RUN, start=0)
    with open(log, "w") as file:
        for batch in loader:
            file.write(" ".join(batch.keys) + "\n")
            file.flush()
            time.sleep(0.02)


WINDOW: dict[str, Any] = {"mode": "window", "window": 2}
RUN: dict[str, Any] = {"seed": 3, "batch_size": 4}


def test_a_killed_run_goes_on_exactly_with_other_ranks_and_workers(tmp_path: Path) -> None:
    folder, cache, log = tmp_path / "d", tmp_path / "c", tmp_path / "log"
    folder_of(folder, [5, 9, 1, 8], keep=["cls"])
    run = multiprocessing.Process(target=_train, args=(str(folder), str(cache), str(log)))
    run.start()
    while not log.exists() or len(log.read_text().splitlines()) < 7:
        assert run.is_alive()
        time.sleep(0.01)
    run.kill()
    run.join()
    keys = [line.split() for line in log.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    data = windowed(str(folder), cache, **WINDOW)
    for ranks, workers, steps in ((2, 1, 5), (4, 0, 7)):
        loaders = [
            batches(
                data, SHAPES, **RUN, start=4 * len(keys),
                rank=rank, world_size=ranks, num_workers=workers,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        keys += [[k for loader in loaders for k in next(loader).keys] for _ in range(steps)]
        for loader in loaders:
            loader.close()
    flat = [key for batch in keys for key in batch]
    assert flat == [f"s{i:05d}" for i in data.order(range(len(flat)), 3)]
    assert sorted(flat[:23]) == [f"s{i:05d}" for i in range(23)]


# The rest


def test_a_store_is_never_read_by_position() -> None:
    with pytest.raises(Exception, match="mode: is window for stores"):
        shards.Config(urls=("s3://x",), fields=("labels",), mode="positional")


def test_memory_stays_flat_over_windows() -> None:
    windows = Windows([100] * 200, 4)
    for counter in range(0, 20_000, 50):
        windows.indices([counter], 0)
    assert windows._window.cache_info().currsize <= 3
