"""Progress off a terminal: lines, not too many, by rank 0 alone."""

import io
import logging
import sys

import pytest

from regscale import progress


def lines(caplog: pytest.LogCaptureFixture, seconds: float) -> list[str]:
    caplog.clear()
    with (
        pytest.MonkeyPatch.context() as patch,
        caplog.at_level(logging.INFO, "regscale"),
    ):
        patch.setattr(sys, "stderr", io.StringIO())
        patch.setattr(progress, "LINE_SECONDS", seconds)
        with progress.progress(1200, what="drawing", unit="images") as advance:
            advance(32)
            advance(1100)
    return caplog.messages


def test_a_log_is_told_how_far_the_work_is(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, 0) == ["drawing: 32 of 1,200 images", "drawing: 1,132 of 1,200 images"]
    assert lines(caplog, 60) == []


def test_other_ranks_tell_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert lines(caplog, 0) == []
