"""Copies on the node's disk: whole or absent, one for all processes, and no more than told."""

import errno
import itertools
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import pytest

from regscale.data import _cache
from regscale.data._cache import PART, Cache
from regscale.data._index import quick_hash
from regscale.data._merged import Shard
from regscale.errors import RegscaleError


def written(path: Path, content: bytes) -> tuple[str, Shard]:
    """A file's address, and what an index says of it."""
    path.write_bytes(content)
    quick = quick_hash(lambda at, length: content[at : at + length], len(content))
    return str(path), Shard(path.name, len(content), quick, "", 1)


def parts(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix != ".tar")


def test_a_file_is_copied_once(tmp_path: Path) -> None:
    url, shard = written(tmp_path / "x.tar", b"abc")
    cache = Cache(str(tmp_path / "cache"), 1 << 20)
    first = cache.copy(url, shard)
    assert first.read_bytes() == b"abc"
    (tmp_path / "x.tar").unlink()
    assert cache.copy(url, shard) == first
    with pytest.raises(FileNotFoundError):
        cache.copy(url, shard._replace(digest="other"))


def test_a_copy_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    url, shard = written(tmp_path / "x.tar", b"abc")
    cache = Cache(str(tmp_path / "cache"), 1 << 20)
    path = cache.copy(url, shard)
    for damaged in (b"", b"ab", b"abx"):
        path.write_bytes(damaged)
        assert cache.copy(url, shard).read_bytes() == b"abc"


# Room


def test_the_copies_that_were_used_least_recently_make_room(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 250)
    files = [written(tmp_path / f"{name}.tar", bytes(100)) for name in "abc"]
    a, b = (cache.copy(*file) for file in files[:2])
    os.utime(b, (0, 0))
    c = cache.copy(*files[2])
    assert (a.exists(), b.exists(), c.exists()) == (True, False, True)


def test_nothing_else_of_the_folder_is_removed(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 150)
    mine = [tmp_path / name for name in ("x-0.tar", "imagenet-train-000000.tar", "notes.part")]
    for path in mine:
        path.write_bytes(bytes(100))
    files = [written(tmp_path / f"{name}.tar", bytes(100)) for name in "ab"]
    first, second = (cache.copy(*file) for file in files)
    assert not first.exists()
    assert second.exists()
    assert all(path.exists() for path in [*mine, tmp_path / "a.tar"])


def _killed_while_copying(url: str, shard: Shard, folder: str) -> None:
    def kill() -> None:
        os._exit(9)

    Cache(folder, 1 << 30).copy(url, shard, kill)


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_what_a_killed_process_left_is_no_part_of_the_next_copy(tmp_path: Path, order: str) -> None:
    files = {name: written(tmp_path / f"{name}.tar", name.encode() * 1000) for name in "xy"}
    cache = Cache(str(tmp_path / "cache"), 2500)
    arguments = (*files["x"], str(cache.folder))
    killed = multiprocessing.Process(target=_killed_while_copying, args=arguments)
    killed.start()
    killed.join()
    assert [Path(name).suffix for name in parts(cache)] == [PART]
    for name in order:
        assert cache.copy(*files[name]).read_bytes() == name.encode() * 1000
        assert parts(cache) == []


def test_a_part_that_is_being_written_counts_and_stays(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 250)
    files = [written(tmp_path / f"{name}.tar", bytes(100)) for name in "abc"]
    a = cache.copy(*files[0])
    paused, goes_on = threading.Event(), threading.Event()

    def pause() -> None:
        paused.set()
        goes_on.wait(10)

    thread = threading.Thread(target=cache.copy, args=(*files[1], pause))
    thread.start()
    paused.wait(10)
    cache.copy(*files[2])
    assert len(parts(cache)) == 1
    assert not a.exists()
    goes_on.set()
    thread.join()
    assert cache.copy(*files[1]).exists()
    assert parts(cache) == []


# Processes


def _copy(url: str, shard: Shard, folder: str, results: "multiprocessing.Queue[int]") -> None:
    path = Cache(folder, 1 << 30).copy(url, shard)
    results.put(path.stat().st_ino)


def test_processes_of_a_node_share_one_copy(tmp_path: Path) -> None:
    file = written(tmp_path / "x.tar", bytes(1 << 24))
    results: multiprocessing.Queue[int] = multiprocessing.Queue()
    arguments = (*file, str(tmp_path / "cache"), results)
    workers = [multiprocessing.Process(target=_copy, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert len({results.get(timeout=30) for _ in workers}) == 1
    for worker in workers:
        worker.join()
    assert parts(Cache(str(tmp_path / "cache"), 1)) == []


def test_a_lock_counts_only_while_its_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part is removed between the moment it is opened and the moment its lock is taken."""
    file = written(tmp_path / "x.tar", b"whole")
    cache = Cache(str(tmp_path / "cache"), 1 << 20)
    wait, removed = _cache._wait_for_lock, []

    def late(part: "tempfile._TemporaryFileWrapper[bytes]", progress: _cache.Progress) -> None:
        if not removed:
            removed.append(part.name)
            assert _cache._remove_abandoned(Path(part.name))
        wait(part, progress)

    monkeypatch.setattr(_cache, "_wait_for_lock", late)
    assert cache.copy(*file).read_bytes() == b"whole"
    assert parts(cache) == []


def _copy_and_evict(files: list[tuple[str, Shard]], folder: str, seed: int) -> None:
    cache = Cache(folder, 450)
    for number in range(60):
        url, shard = files[(number * 7 + seed) % len(files)]
        try:
            content = cache.copy(url, shard).read_bytes()
        except FileNotFoundError:  # evicted between the copy and its reading, as the reader retries
            continue
        assert len(content) == shard.size


def test_processes_that_evict_each_others_copies_leave_nothing_half(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.tar", bytes([i]) * 200) for i in range(5)]
    cache = Cache(str(tmp_path / "cache"), 450)
    workers = [
        multiprocessing.Process(target=_copy_and_evict, args=(files, str(cache.folder), seed))
        for seed in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert parts(cache) == []
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 450 + 3 * 200


def test_whoever_waits_for_a_copy_sees_its_growth_as_progress(tmp_path: Path) -> None:
    file = written(tmp_path / "x.tar", bytes(3 * _cache.CHUNK))
    cache, seen, begun = Cache(str(tmp_path / "cache"), 1 << 30), [], threading.Event()
    parts_written = itertools.count(1)

    def until_seen() -> None:
        begun.set()
        written, deadline = next(parts_written), time.monotonic() + 30
        while len(seen) < written and time.monotonic() < deadline:
            time.sleep(0.01)

    thread = threading.Thread(target=cache.copy, args=(*file, until_seen))
    thread.start()
    begun.wait(30)
    cache.copy(*file, lambda: seen.append(1))
    thread.join()
    assert len(seen) == 3


# The node's disk


def _full(url: str, shard: Shard, folder: str, results: "multiprocessing.Queue[str]") -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the disk refuses further bytes
    try:
        Cache(folder, 1 << 30).copy(url, shard)
    except RegscaleError as error:
        results.put(str(error))


def test_a_disk_that_takes_no_more_is_told_with_its_settings_and_keeps_no_part(
    tmp_path: Path,
) -> None:
    cache, results = Cache(str(tmp_path / "cache"), 1 << 30), multiprocessing.Queue()
    file = written(tmp_path / "x.tar", bytes(5000))
    process = multiprocessing.Process(target=_full, args=(*file, str(cache.folder), results))
    process.start()
    message = results.get(timeout=30)
    process.join()
    assert message.startswith(f"data.cache: {cache.folder}: cannot take a copy; found File too")
    assert "of the 1 GiB that data.cache_gib allows. Set data.cache to a folder" in message
    assert parts(cache) == []


def test_a_full_disk_is_told_at_the_first_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(part: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_cache, "_write_all", full)
    with pytest.raises(RegscaleError, match=r"data\.cache: .* found No space left on device; cop"):
        Cache(str(tmp_path / "cache"), 1 << 30).copy(*written(tmp_path / "x.tar", b"abc"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(str(tmp_path / "file" / "cache"), 1 << 30)
    with pytest.raises(RegscaleError, match=r"data\.cache: .* found Not a directory"):
        cache.copy(*written(tmp_path / "x.tar", b"abc"))


def test_the_default_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    file = written(tmp_path / "x.tar", b"abc")
    folder = Cache("", 1 << 30).copy(*file).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / f"regscale-cache-{me + 1}")
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(RegscaleError, match=rf"belongs to another; found user {me}"):
        Cache("", 1 << 30).copy(*file)
