"""Starts of whole runs on several ranks; those of one file are forked from one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.training.ranks import COMMON, Nursery, Ranks, Start


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def start(nursery: Nursery, file: Path) -> Iterator[Start]:
    """`start(run, *overrides, size=2, ...)`; after the test no process of it is left."""
    with ExitStack() as stack:
        yield lambda run, *overrides, **options: stack.enter_context(
            Ranks(nursery, file, run, *COMMON, *overrides, **options)
        )
