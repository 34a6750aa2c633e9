"""What a task does around its command."""

import os
import signal
from importlib import import_module
from pathlib import Path

import pytest

from regscale.slurm import task
from regscale.slurm.place import Place, failures, read, write


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("7", 0, 1, 4, "n1", tmp_path)


def lost() -> None:
    raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("name", task.COMMANDS)
def test_a_command_of_a_launcher_can_be_called(name: str) -> None:
    assert callable(import_module(task.COMMANDS[name]).main)


def test_a_fault_leaves_word(place: Place) -> None:
    assert task._told(place, lost) == 1
    (facts,) = failures(place)
    assert facts["kind"] == "fault"
    assert facts["message"] == "RuntimeError: Connection closed by peer"


def test_a_line_lost_to_ranks_that_left_in_order_is_no_fault(place: Place) -> None:
    write(place.outcome, {"reason": "stop file"})
    assert task._told(place, lost) == 0
    assert failures(place) == []


@pytest.mark.parametrize("before", ["", "stop file"])
def test_a_sigterm_after_a_warning_does_not_take_its_place(
    place: Place, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        write(place.outcome, {"reason": before})
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    held = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        task._hear_early(place)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    assert ended == [0]
    assert read(place.outcome)["reason"] == (before or "SIGTERM")
