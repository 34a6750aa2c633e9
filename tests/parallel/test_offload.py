"""Moments outside the device: in the host's memory, or in files that are mapped into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regscale.errors import RegscaleError
from regscale.parallel._mapped import zeros_in
from tests.parallel import cases
from tests.parallel.conftest import Runs
from tests.parallel.test_engines import assert_same_training
from tests.parallel.test_optimizers import resumed, saved

CPU = "engine.offload=cpu"


def nvme(folder: Path) -> tuple[str, str]:
    return "engine.offload=nvme", f"engine.offload_folder={folder}"


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, 2])
def test_moments_on_the_host_or_in_files_change_nothing(
    runs: Runs, tmp_path: Path, stage: int
) -> None:
    (want,) = runs(1, cases.trained, "single", steps=5)
    host = runs(2, cases.trained, f"zero{stage}", CPU, steps=5)
    files = runs(2, cases.trained, f"zero{stage}", *nvme(tmp_path), steps=5)
    for a, b in zip(host, files, strict=True):
        assert_same_training(a, want)
        assert (a["losses"], a["norms"]) == (b["losses"], b["norms"])
        assert cases.same(a["state"], b["state"])


@pytest.mark.distributed
def test_a_run_goes_on_with_moments_in_files(runs: Runs, tmp_path: Path) -> None:
    """To the bits of a run that has them in memory and is not disturbed."""
    checkpoints = str(tmp_path / "checkpoints")
    want = runs(2, saved, "zero3", *nvme(tmp_path / "a"), folder=checkpoints)
    for files in (nvme(tmp_path / "b"), (CPU,)):
        made = runs(2, resumed, "zero3", *files, folder=checkpoints)
        for a, b in zip(made, want, strict=True):
            assert a["losses"] == b["losses"]
            assert cases.same(a["ranges"], b["ranges"])


def test_a_moment_is_a_file_without_a_name(tmp_path: Path) -> None:
    zeros = zeros_in(tmp_path / "moments")
    made, empty = zeros(torch.ones(5000)), zeros(torch.ones(0))
    assert torch.equal(made, torch.zeros(5000))
    assert empty.shape == (0,)
    maps = Path("/proc/self/maps").read_text().splitlines()
    places = [line for line in maps if str(tmp_path / "moments") in line]
    assert len(places) == 1
    first, last = (int(end, 16) for end in places[0].split()[0].split("-"))
    assert first <= made.data_ptr() < last
    assert list((tmp_path / "moments").iterdir()) == []


def test_a_folder_that_cannot_hold_them_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RegscaleError, match=r"file: cannot take moments of 4 MiB; found .*exists"):
        zeros_in(tmp_path / "file")(torch.empty(2**20))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("engine.offload=nvme",), "offload_folder: is the place of moments under offload: nvme"),
        (("engine.offload_folder=/x",), "found /x under offload: none"),
        ((*nvme(Path("/x")), "optimizer.rule=adamw8bit"), "none or cpu for 8-bit moments"),
    ],
)
def test_what_does_not_go_together_is_refused(
    runs: Runs, overrides: tuple[str, ...], message: str
) -> None:
    (made,) = runs(1, cases.refusal, "zero3", *overrides)
    assert message in made
