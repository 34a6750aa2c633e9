"""F2-F5, F9: damage of any kind is found, named, and answered with an older checkpoint."""

import logging
import random
import shutil

import pytest

from regscale.checkpoint import Reader, newest, retention
from regscale.checkpoint.format import seal
from regscale.errors import RegscaleError


def test_no_flipped_bit_is_loaded(tmp_path, tools):
    """F3, over all bytes of all files; loading alone finds it, and so does verifying."""
    folder = tools.save(tmp_path, 1, writers=3)
    files = sorted(folder.iterdir())
    dice = random.Random(0)
    for _ in range(200):
        path = dice.choice(files)
        intact = path.read_bytes()
        place, bit = dice.randrange(len(intact)), dice.randrange(8)
        flipped = bytearray(intact)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(RegscaleError, match=path.name):
            tools.load(folder)
        with pytest.raises(RegscaleError, match=path.name):
            Reader(folder).verify()
        path.write_bytes(intact)
    assert tools.same(tools.load(folder), tools.tensors(1))


def test_every_flipped_bit_of_a_range_is_found_by_its_block(tmp_path, tools):
    folder = tools.save(tmp_path, 1, writers=1, block_bytes=64)
    path = folder / "part-00000.safetensors"
    intact = path.read_bytes()
    place = intact.index(tools.tensors(1)["model/weight"].numpy().tobytes()) + 300
    path.write_bytes(intact[:place] + bytes([intact[place] ^ 4]) + intact[place + 1 :])
    reader = Reader(folder)
    with pytest.raises(RegscaleError, match=rf"bytes .*\(block {place // 64}\)"):
        reader.range("model/weight", 70, 80)
    assert reader.range("model/weight", 120, 130).numel() == 10


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path, tools, share):
    """F2."""
    for step, victim in enumerate(sorted(p.name for p in tools.save(tmp_path, 99).iterdir())):
        path = tools.save(tmp_path, step) / victim
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(RegscaleError, match=victim):
            Reader(path.parent)


def test_a_missing_file_is_named(tmp_path, tools):
    """F4."""
    for step, victim in enumerate(sorted(p.name for p in tools.save(tmp_path, 99).iterdir())):
        path = tools.save(tmp_path, step) / victim
        path.unlink()
        with pytest.raises(RegscaleError, match=f"{victim}: cannot be read; found ENOENT"):
            Reader(path.parent)


@pytest.mark.parametrize("names", ["*.safetensors", "*.json", "part-00001.*", "manifest.json"])
def test_files_of_two_steps_in_one_folder_are_refused(tmp_path, tools, names):
    """F5."""
    first, second = tools.save(tmp_path, 1), tools.save(tmp_path, 2)
    for path in second.glob(names):
        shutil.copy(path, first / path.name)
    with pytest.raises(RegscaleError):
        tools.load(first)
    assert newest(tmp_path).step == 2


def test_a_foreign_file_beside_the_listed_ones_changes_nothing(tmp_path, tools):
    first, second = tools.save(tmp_path, 1), tools.save(tmp_path, 2, writers=3)
    shutil.copy(second / "part-00002.safetensors", first)
    assert tools.same(tools.load(first), tools.tensors(1))


def test_a_folder_with_the_name_of_another_step_is_refused(tmp_path, tools):
    tools.save(tmp_path, 1).rename(tmp_path / "step-00000009")
    with pytest.raises(RegscaleError, match="the manifest is of step 1"):
        Reader(tmp_path / "step-00000009")


def test_the_newest_intact_one_is_taken_and_the_damage_said(tmp_path, tools, caplog):
    """F9."""
    tools.save(tmp_path, 1)
    for step, name in ((2, "part-00000.safetensors"), (3, "manifest.json")):
        path = tools.save(tmp_path, step) / name
        data = path.read_bytes()
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    with caplog.at_level(logging.WARNING):
        reader = newest(tmp_path)
    assert tools.same(tools.load(reader.folder), tools.tensors(1))
    assert "step-00000002/part-00000.safetensors: bytes" in caplog.text
    assert "step-00000003/manifest.json" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path, tools):
    """F9."""
    for step in (1, 2):
        (tools.save(tmp_path, step) / "part-00001.json").unlink()
    with pytest.raises(RegscaleError, match=r"no intact checkpoint.*2 damaged: step-00000002, "):
        newest(tmp_path)


def test_a_run_without_checkpoints_has_no_newest(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    manifest = seal({"format": "regscale-checkpoint", "version": 99})[0]
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(RegscaleError, match="version 99"):
        Reader(folder)


def test_readers_share_the_verification(tmp_path, tools):
    folder = tools.save(tmp_path, 1)
    path = folder / "part-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = 0
    for share in range(3):
        try:
            Reader(folder).verify(share=share, shares=3)
        except RegscaleError:
            found += 1
    assert found == 1


def test_candidates_are_steps_from_the_newest_down(tmp_path):
    for name in ("step-00000009", "step-100000000", "step-00000009.replaced", ".tmp-step-1", "x"):
        (tmp_path / name).mkdir()
    names = [path.name for path in retention.candidates(tmp_path)]
    assert names == ["step-100000000", "step-00000009", "step-00000009.replaced"]
