"""Window mode: whole shards through the node's cache, in an order that reads few at a time."""

import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regscale.data import NoiseShapes, batches, shards
from regscale.data import _order as order_module
from regscale.data._window import Ahead, Cache, Windows, on_network
from regscale.errors import RegscaleError
from tests.data.packing import folder_of

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
            assert set(windows.ahead(start - 1, 0)) == together
    assert windows.indices(range(200), 0) != windows.indices(range(200, 400), 0)
    assert windows.indices(range(200), 0) != windows.indices(range(200), 1)


def test_deep_in_a_large_data_set_the_order_is_there_at_once() -> None:
    windows = Windows([10_000] * 100_000, 16)  # a billion samples
    began = time.monotonic()
    windows.indices(range(10**12, 10**12 + 256), 0)
    assert time.monotonic() - began < 1


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


# The cache


def test_a_file_is_copied_once(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"abc")
    cache = Cache(str(tmp_path / "cache"), 1 << 20)
    first = cache.copy(str(tmp_path / "x.tar"), "1")
    assert first.read_bytes() == b"abc"
    (tmp_path / "x.tar").unlink()
    assert cache.copy(str(tmp_path / "x.tar"), "1") == first
    with pytest.raises(FileNotFoundError):
        cache.copy(str(tmp_path / "x.tar"), "2")


def test_the_copies_that_were_used_least_recently_make_room(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 250)
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(bytes(100))
    a, b = (cache.copy(str(tmp_path / f"{name}.tar"), "1") for name in "ab")
    os.utime(b, (0, 0))
    c = cache.copy(str(tmp_path / "c.tar"), "1")
    assert (a.exists(), b.exists(), c.exists()) == (True, False, True)


def _copy(url: str, folder: str, results: "multiprocessing.Queue[int]") -> None:
    path = Cache(folder, 1 << 30).copy(url, "1")
    results.put(path.stat().st_ino)


def test_processes_of_a_node_share_one_copy(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(1 << 24))
    results: multiprocessing.Queue[int] = multiprocessing.Queue()
    arguments = (str(tmp_path / "x.tar"), str(tmp_path / "cache"), results)
    workers = [multiprocessing.Process(target=_copy, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert len({results.get(timeout=30) for _ in workers}) == 1
    for worker in workers:
        worker.join()


def test_a_copy_that_was_killed_half_way_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"whole")
    cache = Cache(str(tmp_path / "cache"), 1 << 20)
    path = cache.copy(str(tmp_path / "x.tar"), "1")
    path.unlink()
    path.with_name(path.name + ".part").write_bytes(b"wh")
    assert cache.copy(str(tmp_path / "x.tar"), "1").read_bytes() == b"whole"


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


def test_a_copy_that_does_not_fit_its_index_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "d", [2], keep=["cls"])
    data = windowed(str(tmp_path / "d"), tmp_path / "c", mode="window")
    assert data.num_samples == 2
    with open(tmp_path / "d" / "00000.tar", "ab") as file:
        file.write(bytes(512))
    with pytest.raises(RegscaleError, match=r"00000\.tar: has changed since it was indexed"):
        data.read([0], [0])


def test_a_shard_that_leaves_a_store_is_a_clear_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder_of(tmp_path / "d", [2, 2], keep=["cls"])
    data = windowed(str(tmp_path / "d"), tmp_path / "c", mode="window", window=1)
    data.reader.retry_seconds = (0.0,)
    (tmp_path / "d" / "00001.tar").unlink()
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(RegscaleError, match=r"00001\.tar: cannot be read after 2 tries"),
    ):
        data.read([3], [0])


# Where window mode is the default


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/home/me/data", False),
        ("/scratch/data", True),
        ("/scratch", True),
        ("/scratch-local/data", False),
        ("/scratch/nvme/data", False),
        ("/with space/data", True),
    ],
)
def test_network_file_systems_are_known_by_the_table_of_mounts(
    tmp_path: Path, path: str, network: bool
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\n"
        "server:/x /scratch lustre rw 0 0\n"
        "/dev/nvme0 /scratch/nvme xfs rw 0 0\n"
        "s3 /with\\040space fuse.cephfs rw 0 0\n"
    )
    assert on_network(path, str(mounts)) is network


def test_a_store_is_never_read_by_position() -> None:
    with pytest.raises(Exception, match="mode: is window for stores"):
        shards.Config(urls=("s3://x",), fields=("labels",), mode="positional")


def test_memory_stays_flat_over_windows() -> None:
    windows = Windows([100] * 200, 4)
    for counter in range(0, 20_000, 50):
        windows.indices([counter], 0)
    assert windows._window.cache_info().currsize <= 3
