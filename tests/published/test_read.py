"""Files of strangers: nothing of them is run, and what is wrong is said."""

import argparse
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from regscale.errors import RegscaleError
from regscale.published import Published, read, write_weights

TINY = Path(__file__).parents[1] / "reference/reference_checkpoint_tiny.pt"
WEIGHTS = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


class Command:
    """Unpickling this runs a command."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.sentinel}'",)


class Disguised(argparse.Namespace):
    """An argparse.Namespace whose unpickling opens a file for writing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.sentinel), "w")


class Hook(argparse.Namespace):
    """A subclass is not argparse.Namespace: its __setstate__ would run."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["sentinel"]).touch()


def in_namespace(sentinel: Path) -> argparse.Namespace:
    return argparse.Namespace(lr=1e-4, log=Command(sentinel))


def in_state(sentinel: Path) -> Any:
    """A list as the state of a Namespace, and a command inside a tensor's dictionary."""
    return [{**WEIGHTS, "b": Command(sentinel)}]


@pytest.mark.parametrize(
    ("payload", "asked"),
    [
        (Command, r"a request for posix.system"),
        (in_namespace, r"a request for posix.system"),
        (in_state, r"a request for posix.system"),
        (lambda s: Disguised(sentinel=s), r"a request for (_io|io).open"),
        (lambda s: Hook(sentinel=s), r"a request for \S*Hook"),
        (lambda _: torch.nn.Linear(2, 2), r"a request for torch.nn.modules.linear.Linear"),
    ],
    ids=["model", "in a namespace", "in a list", "disguised", "hook", "a whole module"],
)
@pytest.mark.parametrize("place", ["model", "args", "opt"])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "old format"])
def test_not_one_line_of_a_hostile_file_is_run(
    tmp_path: Path, payload: Any, asked: str, place: str, as_zip: bool
) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "bad.pt"
    content = {"model": WEIGHTS, "ema": WEIGHTS, place: payload(sentinel)}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(RegscaleError, match=rf"nothing of it was run.*found {asked}") as caught:
        read(path)
    assert not sentinel.exists()
    assert "bad.pt" in str(caught.value)
    torch.load(path, weights_only=False)  # the file would have worked
    assert sentinel.exists() or "nn.modules" in asked


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "bad.pt"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Command(sentinel), protocol=protocol))
        with pytest.raises(RegscaleError, match=r"bad\.pt"):
            read(path)
    assert not sentinel.exists()


def test_only_namespace_is_allowed_and_only_while_reading() -> None:
    read(TINY)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    data, path = TINY.read_bytes(), tmp_path / "cut.pt"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(RegscaleError, match=r"cut\.pt: cannot be read.*Download it again"):
        read(path)


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path) -> None:
    """torch.load alone reads it as another number."""
    with zipfile.ZipFile(TINY) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    data, path = bytearray(TINY.read_bytes()), tmp_path / "flipped.pt"
    data[record.header_offset + 200 + record.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RegscaleError, match=r"is damaged: a record differs from its checksum"):
        read(path)


def test_no_damage_ends_in_anything_but_a_message(tmp_path: Path) -> None:
    refused = 0
    original, chance, path = TINY.read_bytes(), random.Random(0), tmp_path / "damaged.pt"
    with zipfile.ZipFile(TINY) as archive:
        pickled = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
    for round_ in range(60):
        data = bytearray(original)
        low, size = (pickled.header_offset, pickled.file_size) if round_ % 2 else (0, len(data))
        for _ in range(chance.randrange(1, 20)):
            data[low + chance.randrange(size)] = chance.randrange(256)
        path.write_bytes(data)
        try:
            survived = read(path)
        except RegscaleError:
            refused += 1
            continue
        for name, tensor in read(TINY).model.items():  # damage where no content is
            assert torch.equal(survived.model[name], tensor)
    assert refused > 45


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "list"),
        ({}, "weights with no tensors"),
        ({"model": {}}, "weights|model with no tensors"),
        ({"epoch": 3, "a": torch.ones(1)}, "weights with epoch: int"),
        ({"model": {"a": torch.ones(1, dtype=torch.int64)}}, "model with a: Tensor"),
        ({"model": WEIGHTS, "args": 3}, "args: is of type dict.*found int"),
        ({"model": WEIGHTS, "steps": "x"}, "steps: is of type int.*found str"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RegscaleError, match=found):
        read(tmp_path / "other.pt")


def test_a_missing_file_and_a_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="is not a file"):
        read(tmp_path / "none.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RegscaleError, match="cannot be read as safetensors"):
        read(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_bare_weights_lose_the_prefix_of_a_wrapper_and_become_fp32(
    tmp_path: Path, prefix: str
) -> None:
    torch.save({f"{prefix}{k}": v.half() for k, v in WEIGHTS.items()}, tmp_path / "bare.pt")
    content = read(tmp_path / "bare.pt")
    assert content.model.keys() == WEIGHTS.keys()
    assert {x.dtype for x in content.ema.values()} == {torch.float32}
    assert (content.opt, content.args, content.steps) == (None, None, None)


def test_one_set_of_weights_stands_for_both(tmp_path: Path) -> None:
    torch.save({"ema": WEIGHTS}, tmp_path / "ema.pt")
    assert read(tmp_path / "ema.pt").model.keys() == WEIGHTS.keys()


def test_safetensors_keep_arguments_and_steps(tmp_path: Path) -> None:
    args = {"encoder_depth": 8, "betas": (0.9, 0.95), "list": [1, None, True]}
    content = Published(model=WEIGHTS, ema=WEIGHTS, args=args, steps=7)
    write_weights(tmp_path / "a.safetensors", content, which="ema")
    again = read(tmp_path / "a.safetensors")
    assert (again.args, again.steps) == (args, 7)
    assert all(torch.equal(again.ema[name], WEIGHTS[name]) for name in WEIGHTS)
    save_file(WEIGHTS, tmp_path / "b.safetensors")
    assert read(tmp_path / "b.safetensors").args is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema": torch.zeros(2)}, "ema"),
        ({"steps": -5}, "steps: is a number of updates; found -5"),
        ({"model": {"x": torch.tensor([float("nan")])}}, "holds numbers that are not finite"),
    ],
)
def test_impossible_content_is_told(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    good = {"model": {"x": torch.zeros(2)}, "ema": {"x": torch.zeros(2)}, "steps": 3}
    torch.save(good | change, tmp_path / "odd.pt")
    with pytest.raises(RegscaleError, match=message):
        read(tmp_path / "odd.pt")
