"""F10: one run folder has one writer."""

import json
import logging
import os
import signal
import time

import pytest

from regscale.checkpoint import Lease
from regscale.errors import RegscaleError


def rewrite(folder, **facts) -> None:
    path = folder / "lease.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}).ljust(1024))


def dead_lease(folder, tools, **facts) -> None:
    assert tools.end(tools.start(lambda: Lease.acquire(folder, **facts))) == 0


def test_a_live_lease_is_refused_with_its_holder(tmp_path):
    with Lease.acquire(tmp_path, job="4711", restarts=2):
        with pytest.raises(RegscaleError, match=rf"job 4711 \(restart 2\), pid {os.getpid()} on"):
            Lease.acquire(tmp_path, job="4712")
        with pytest.raises(RegscaleError, match="Wait until it has ended"):
            Lease.acquire(tmp_path, job="4711", restarts=2)
    assert not list(tmp_path.iterdir())


def test_a_released_lease_can_be_taken_and_released_twice(tmp_path):
    lease = Lease.acquire(tmp_path / "run")
    lease.beat()
    lease.release()
    lease.release()
    assert not lease.path.exists()
    with Lease.acquire(tmp_path / "run") as again:
        assert again.path == lease.path
        assert again.path.exists()
    assert not again.path.exists()


def test_the_lease_of_a_killed_process_is_taken_over(tmp_path, tools, caplog):
    dead_lease(tmp_path, tools, job="1")
    with caplog.at_level(logging.WARNING), Lease.acquire(tmp_path) as lease:
        lease.beat()
    assert "took over from job 1 (restart 0)" in caplog.text
    assert "that process is dead" in caplog.text


def test_a_lease_of_another_machine_is_taken_over_when_its_heart_stops(tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # a slow disk makes no heart older
    first = Lease.acquire(tmp_path)
    rewrite(tmp_path, machine="elsewhere")
    with pytest.raises(RegscaleError, match="heartbeat 0 s ago"):
        Lease.acquire(tmp_path)
    rewrite(tmp_path, heartbeat=now - 1000)
    second = Lease.acquire(tmp_path)
    with pytest.raises(RegscaleError, match="has taken over this run"):
        first.beat()
    first.release()
    second.beat()


def test_a_heartbeat_keeps_a_lease(tmp_path):
    lease = Lease.acquire(tmp_path)
    rewrite(tmp_path, heartbeat=time.time() - 1000)
    lease.beat()
    with pytest.raises(RegscaleError):
        Lease.acquire(tmp_path, stale_seconds=100)


def test_a_restart_takes_over_from_the_job_before_it(tmp_path):
    first = Lease.acquire(tmp_path, job="7", restarts=0)
    with pytest.raises(RegscaleError):
        Lease.acquire(tmp_path, job="8", restarts=1)
    Lease.acquire(tmp_path, job="7", restarts=1)
    with pytest.raises(RegscaleError, match="taken over"):
        first.beat()


def test_a_lease_that_is_not_yet_written_is_respected(tmp_path):
    (tmp_path / "lease.json").touch()
    with pytest.raises(RegscaleError, match="an unknown host"):
        Lease.acquire(tmp_path)
    os.utime(tmp_path / "lease.json", (time.time() - 1000,) * 2)
    Lease.acquire(tmp_path).beat()


def test_a_contender_killed_while_taking_over_blocks_nobody(tmp_path, tools):
    dead_lease(tmp_path, tools)
    token = json.loads((tmp_path / "lease.json").read_text())["token"]
    (tmp_path / "aside").mkdir()
    dead_lease(tmp_path / "aside", tools)
    (tmp_path / "aside" / "lease.json").rename(tmp_path / f"lease.json.{token}")
    Lease.acquire(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["aside"]


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_contenders_exactly_one_wins(tmp_path, tools, stale):
    for attempt in range(15):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if stale:
            dead_lease(folder, tools)
        start = time.time() + 0.05

        def contend(folder=folder, start=start) -> None:
            time.sleep(max(0.0, start - time.time()))
            try:
                lease = Lease.acquire(folder)
            except RegscaleError:
                (folder / f"lost-{os.getpid()}").touch()
                return
            (folder / f"won-{os.getpid()}").touch()
            while len(list(folder.glob("*-*"))) < 6:  # a dead winner would be replaced
                time.sleep(0.005)
            lease.beat()

        pids = [tools.start(contend) for _ in range(6)]
        assert [tools.end(pid) for pid in pids] == [0] * 6
        winners = [path.name[4:] for path in folder.glob("won-*")]
        assert len(winners) == 1
        assert json.loads((folder / "lease.json").read_text())["pid"] == int(winners[0])


def test_a_stopped_process_loses_its_lease_only_when_it_is_stale(tmp_path, tools):
    ready, wait = os.pipe()

    def hold() -> None:
        lease = Lease.acquire(tmp_path)
        os.write(wait, b"x")
        signal.pause()
        lease.release()

    pid = tools.start(hold)
    os.read(ready, 1)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(RegscaleError):
        Lease.acquire(tmp_path)
    time.sleep(0.05)
    Lease.acquire(tmp_path, stale_seconds=0.01).release()
    os.kill(pid, signal.SIGKILL)
    tools.end(pid)


def test_a_pid_that_was_given_out_again_does_not_keep_a_lease(tmp_path):
    Lease.acquire(tmp_path)
    rewrite(tmp_path, started=1)
    taken = Lease.acquire(tmp_path)
    taken.beat()
    assert taken.path.exists()
