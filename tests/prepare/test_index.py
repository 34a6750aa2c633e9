"""The commands `index` and `verify`: resumable, in parallel, and clear about damage."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from regscale.data import _merged, index_path
from regscale.data._tar import BLOCK
from regscale.errors import RegscaleError
from regscale.prepare.__main__ import commands, main
from tests.data.packing import npy, overwrite, pack, sample
from tests.data.test_index import members
from tests.data.test_shards import flip_bit, source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in range(3):
        pack(tmp_path / f"{place}.tar", [sample(i) for i in range(4 * place, 4 * place + 4)])
    return tmp_path


def index(folder: Path, *options: str) -> None:
    main(["index", str(folder), "--workers", "1", *options])


def verify(folder: Path) -> None:
    main(["verify", str(folder), "--workers", "1"])


def test_an_indexed_folder_is_a_source_and_verifies(folder: Path) -> None:
    index(folder)
    assert source(folder).read([11], [0]).keys == ("s00011",)
    verify(folder)


def test_the_command_goes_on_where_it_was_stopped(folder: Path) -> None:
    index(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar.index")}
    index_path(folder / "1.tar").unlink()
    index(folder)
    kept = {path.name for path, node in before.items() if path.stat().st_mtime_ns == node}
    assert kept == {"0.tar.index", "2.tar.index"}
    index(folder, "--force")
    assert all(path.stat().st_mtime_ns != node for path, node in before.items())


def test_processes_share_the_shards_and_the_last_one_joins_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in ((1, {"1.tar"}), (0, {"0.tar", "1.tar", "2.tar"})):
        monkeypatch.setenv("RANK", str(rank))
        index(folder)
        assert {path.stem for path in folder.glob("*.tar.index")} == made
        assert (folder / "shards.index").exists() == (rank == 0)
    assert source(folder).num_samples == 12
    flip_bit(folder / "1.tar", members(folder / "1.tar")[0].start)
    verify(folder)  # by rank 0, which has the others
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RegscaleError, match="is damaged; found 1 damaged place"):
        verify(folder)
    assert "1.tar: byte 512: sample s00004" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "7")
    verify(folder)  # nothing is left for it


def test_a_shard_that_was_packed_again_is_indexed_again(folder: Path) -> None:
    index(folder)
    pack(folder / "1.tar", [sample(99)])
    index(folder)
    assert source(folder).num_samples == 9


def test_a_kill_leaves_no_half_index(folder: Path) -> None:
    command = [sys.executable, "-m", "regscale.prepare", "index", str(folder), "--workers", "1"]
    for seconds in (0.2, 1.0, 2.0):
        process = subprocess.Popen(command, start_new_session=True)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in folder.glob("*.index"):
            _merged.read(path)
    index(folder)
    assert source(folder).num_samples == 12


def test_damage_is_listed_and_the_status_is_2(folder: Path) -> None:
    lost = members(folder / "1.tar")[6]
    overwrite(folder / "1.tar", lost.head, bytes(BLOCK))
    command = [sys.executable, "-m", "regscale.prepare", "index", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{folder}/1.tar: byte {lost.head:,}: sample s00005: has a header")
    assert lines[1].endswith("sample s00005: has lost 'cls'")
    assert "holds damaged shards; found 2 damaged places" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify_names_shard_byte_and_sample(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, fields = sample(50)
    bad = {**fields, "png": b"\x89PNG\r\n\x1a\n", "vit.npy": npy(np.array([{}]))}
    pack(folder / "2.tar", [(key, bad), sample(51)])
    index(folder)
    flipped = members(folder / "0.tar")[8]
    flip_bit(folder / "0.tar", flipped.start + 130)
    with pytest.raises(RegscaleError, match="is damaged; found 3 damaged places"):
        verify(folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{folder}/0.tar: byte {flipped.start:,}: sample s00001: "
        "field 'moments.npy' differs from its checksum"
    )
    assert "sample s00050: field 'png' is" in lines[1]
    assert "sample s00050: field 'vit.npy' is an array of pickled objects" in lines[2]


def test_verify_sees_a_cut_and_a_missing_index(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index(folder)
    os.truncate(folder / "1.tar", members(folder / "1.tar")[18].start)
    index_path(folder / "2.tar").unlink()
    with pytest.raises(RegscaleError, match="is damaged"):
        verify(folder)
    text = capsys.readouterr().out
    assert "sample s00007: is cut inside member 's00007.moments.npy'" in text
    assert "has changed since it was indexed" in text
    assert "sample s00007: field 'moments.npy' is not where the index says" in text
    assert "2.tar: byte 0: cannot be read as an index" in text


def test_an_error_of_a_process_reaches_the_user(folder: Path) -> None:
    (folder / "shards.json").write_text("[]")
    with pytest.raises(RegscaleError, match=r"shards\.json: does not say which encoder"):
        index(folder, "--workers", "2")


def test_commands_are_the_modules_and_a_wrong_name_gets_the_nearest(tmp_path: Path) -> None:
    assert {"index", "verify"} <= set(commands())
    with pytest.raises(RegscaleError, match=r"found 'indx'\. Did you mean 'index'"):
        main(["indx"])
    with pytest.raises(RegscaleError, match=r"needs a command; found none\. One of: .*index"):
        main([])
    with pytest.raises(RegscaleError, match="holds no shards; found no such folder"):
        index(tmp_path / "none")
