"""A trace holds the updates that were asked for, and costs nothing where none was."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from regscale.config import Invalid
from regscale.training.profiler import Profile, ProfileConfig


def run(folder: Path, config: ProfileConfig, updates: range, rank: int = 0) -> None:
    with Profile(config, folder, rank) as profile:
        for step in updates:
            profile.step(step)
            with record_function(f"update {step}"):
                torch.ones(4) + 1


def traced(path: Path) -> list[str]:
    """The names of the updates in a trace."""
    content: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    names = {str(event.get("name")) for event in content["traceEvents"]}
    assert "aten::add" in names
    return sorted(name for name in names if name.startswith("update "))


@pytest.mark.parametrize(
    ("steps", "updates", "expected"),
    [
        (2, range(6), ["update 3", "update 4"]),
        (9, range(6), ["update 3", "update 4", "update 5"]),  # the run ends first
        (1, range(3, 9), ["update 3"]),  # a run that resumed there
    ],
)
def test_a_trace_holds_the_updates_that_were_asked_for(
    tmp_path: Path, steps: int, updates: range, expected: list[str]
) -> None:
    run(tmp_path, ProfileConfig(start=3, steps=steps), updates, rank=7)
    assert traced(tmp_path / "profile" / "step-00000003-rank-00007.json.gz") == expected


@pytest.mark.parametrize("config", [ProfileConfig(), ProfileConfig(start=2)])
def test_without_a_wish_or_beyond_its_step_nothing_is_traced(
    tmp_path: Path, config: ProfileConfig
) -> None:
    run(tmp_path, config, range(3, 6))
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("a file where a folder should be")
    run(tmp_path, ProfileConfig(start=0, steps=1), range(3))
    assert "training goes on without this trace" in caplog.text


@pytest.mark.parametrize(("key", "value"), [("start", -1), ("steps", 0)])
def test_a_wrong_number_is_refused_by_its_key(key: str, value: int) -> None:
    with pytest.raises(Invalid, match=f"{key}: is"):
        ProfileConfig(**{key: value})
