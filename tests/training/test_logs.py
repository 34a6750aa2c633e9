"""What each rank's log holds, what the terminal shows, and a full disk."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from regscale.log import set_up, to_file

log = logging.getLogger("regscale.training.loop")


@pytest.fixture(autouse=True)
def _logging_is_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.parametrize(("rank", "shown"), [(0, "told\nwarned\n"), (3, "rank 3: warned\n")])
def test_a_rank_writes_its_lines_with_the_time_to_its_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int, shown: str
) -> None:
    set_up(rank=rank)
    with to_file(tmp_path, rank):
        log.debug("left out")
        log.info("told")
        log.warning("warned")
    log.info("after the block")
    lines = (tmp_path / "logs" / f"rank-{rank:05d}.log").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["INFO told", "WARNING warned"]
    assert lines[0].startswith("2")
    assert capsys.readouterr().err.replace("after the block\n", "") == shown


def test_a_resumed_run_goes_on_at_the_end_of_its_log(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with to_file(tmp_path, 0):
            log.warning(text)
    lines = (tmp_path / "logs" / "rank-00000.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second"]


def test_an_error_with_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    with to_file(tmp_path, 0):
        try:
            raise ValueError("boom")
        except ValueError:
            log.exception("failed")
    assert "ValueError: boom" in (tmp_path / "logs" / "rank-00000.log").read_text()


def test_a_folder_that_cannot_be_made_is_told_and_nothing_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    set_up()
    with to_file(tmp_path, 0):
        log.info("told")
    said = capsys.readouterr().err.splitlines()
    assert "training goes on without lines of" in said[0]
    assert said[1:] == ["told"]


FULL = """
import logging, resource, signal, sys
from pathlib import Path
from regscale.log import set_up, to_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
set_up()
with to_file(Path(sys.argv[1]), 0):
    for number in range(500):
        logging.info("line %s", number)
print("went on")
"""


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert done.stdout == "went on\n"
    assert done.stderr.count("training goes on without lines of") == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("line 4") == 111  # all of them are on the terminal
    assert (tmp_path / "logs" / "rank-00000.log").stat().st_size == 4096
