"""F1, F6, F7: a kill, a full disk or a read-only folder never costs a checkpoint."""

import os
import resource
import signal
import time

import pytest

from regscale.checkpoint import Piece, begin, newest, retain, save, set_aside
from regscale.checkpoint.files import temporary
from regscale.errors import RegscaleError


def phases_of(function) -> list[str]:
    names: list[str] = []
    function(names.append)
    return names


def test_a_kill_at_any_phase_of_a_save_leaves_the_old_or_the_new_one(tmp_path, tools):
    """F1."""
    names = phases_of(lambda phase: tools.save(tmp_path / "all", 2, block_bytes=2000, phase=phase))
    assert {"begin", "data", "index", "part", "manifest", "rename", "renamed"} == set(names)
    for i, name in enumerate(names):
        root = tmp_path / str(i)
        tools.save(root, 1)
        kill = tools.KillAt(i)
        pid = tools.start(lambda r=root, k=kill: tools.save(r, 2, block_bytes=2000, phase=k))
        assert tools.end(pid) == -signal.SIGKILL
        step = newest(root).step
        assert step == (2 if name == "renamed" else 1)
        assert tools.same(tools.load(newest(root).folder), tools.tensors(step))
        assert len(list(root.glob(".tmp-*"))) == (name != "renamed")
        tools.save(root, 3)
        assert not list(root.glob(".tmp-*"))


def test_a_kill_while_a_step_is_saved_again_leaves_one_of_both(tmp_path, tools):
    tools.save(tmp_path / "all", 2)
    names = phases_of(lambda phase: tools.save(tmp_path / "all", 2, phase=phase))
    assert {"replaced", "purge", "deleted"} < set(names)
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["step-00000002"]
    for i in range(names.index("rename"), len(names)):
        root, kill = tmp_path / str(i), tools.KillAt(i)
        tools.save(root, 2)
        assert tools.end(tools.start(lambda r=root, k=kill: tools.save(r, 2, phase=k))) < 0
        assert tools.same(tools.load(newest(root).folder), tools.tensors(2))
        tools.save(root, 2)
        assert [path.name for path in root.iterdir()] == ["step-00000002"]


def test_a_kill_during_purge_leaves_nothing_half_loadable(tmp_path, tools):
    """F1."""
    for i in range(6):
        root, kill = tmp_path / str(i), tools.KillAt(i)
        for step in (1, 2):
            tools.save(root, step)
        pid = tools.start(lambda r=root, k=kill: retain(r, saved=2, keep_last=1, phase=k))
        assert tools.end(pid) == -signal.SIGKILL
        assert not (root / "step-00000001").exists()
        assert newest(root).step == 2
        begin(root, 3)
        assert not list(root.glob(".tmp-step-00000001*"))


def test_a_live_writer_keeps_its_temporary_folder(tmp_path, tools):
    ready, wait = os.pipe()

    def hold() -> None:
        begin(tmp_path, 1)
        os.write(wait, b"x")
        signal.pause()

    pid = tools.start(hold)
    os.read(ready, 1)
    tools.save(tmp_path, 2)
    assert len(list(tmp_path.glob(".tmp-step-00000001-*"))) == 1
    os.kill(pid, signal.SIGKILL)
    tools.end(pid)
    tools.save(tmp_path, 3)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_writer_on_another_machine_is_given_an_hour(tmp_path, tools):
    me = temporary(tmp_path, "step-00000001").name.split("-")
    folder = tmp_path / "-".join([*me[:3], "0123456789abcdef", *me[4:]])
    folder.mkdir()
    tools.save(tmp_path, 1)
    assert folder.exists()
    os.utime(folder, (time.time() - 4000,) * 2)
    tools.save(tmp_path, 2)
    assert not folder.exists()


def test_a_full_disk_costs_only_the_save(tmp_path, tools):
    """F6: the limit on the size of a file fails a write as a full disk does."""
    big = tools.tensors(2)["model/weight"].repeat(100, 1)
    tools.save(tmp_path, 1)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        with pytest.raises(RegscaleError, match=r"part-00000.*not be saved.*EFBIG.*ulimit"):
            save(tmp_path, [Piece.whole("model/weight", big)], tools.record(2))
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        tools.save(tmp_path, 3)

    assert tools.end(tools.start(fill)) == 0
    assert newest(tmp_path).step == 3
    assert tools.same(tools.load(tmp_path / "step-00000001"), tools.tensors(1))


@pytest.mark.parametrize("code", [28, 5])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_no_space_and_io_errors_cost_only_the_save(tmp_path, tools, monkeypatch, code, call):
    """F6."""
    tools.save(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(RegscaleError, match=r"not be saved.*(ENOSPC|EIO)"):
            save(tmp_path, [Piece.whole("w", tools.tensors(2)["model/half"])], tools.record(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest(tmp_path).step == 1


def test_a_root_that_cannot_be_written_is_named(tmp_path, tools):
    """F7; a file stands for a read-only folder, which does not stop root."""
    root = tmp_path / "file" / "checkpoints"
    root.parent.write_text("")
    with pytest.raises(RegscaleError, match=rf"{root}: this checkpoint could not be saved"):
        save(root, [], tools.record(1))


def test_retention_keeps_the_last_and_the_milestones(tmp_path, tools):
    for step in range(1, 9):
        tools.save(tmp_path, step, writers=1)
    deleted = retain(tmp_path, saved=8, keep_last=2, keep_every=3)
    kept = sorted(int(path.name[5:]) for path in tmp_path.iterdir())
    assert kept == [3, 6, 7, 8]
    assert [path.name[-1] for path in deleted] == ["5", "4", "2", "1"]


def test_retention_never_counts_a_damaged_checkpoint(tmp_path, tools):
    for step in (1, 2, 3):
        tools.save(tmp_path, step)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    retain(tmp_path, saved=3, keep_last=1)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "3"]
    assert newest(tmp_path).step == 2


def test_retention_keeps_what_was_just_saved_behind_one_that_opens(tmp_path, tools):
    for step in (1, 2, 3):
        tools.save(tmp_path, step)
    retain(tmp_path, saved=2, keep_last=1)
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["2", "3"]


def test_what_was_set_aside_is_no_checkpoint_and_goes_when_its_step_is_saved(tmp_path, tools):
    for step in (1, 2, 3):
        tools.save(tmp_path, step)
    set_aside(tmp_path, resumed=1, saved=3)
    names = ["step-00000001", "step-00000002.damaged", "step-00000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    tools.save(tmp_path, 2)
    set_aside(tmp_path, resumed=1, saved=3)  # the same again: the one before goes
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    tools.save(tmp_path, 2)
    begin(tmp_path, 4)
    names = [f"step-0000000{step}" for step in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == names
