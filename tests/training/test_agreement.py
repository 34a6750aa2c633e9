"""Processes of one run that were started differently refuse each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import regscale
from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.training.agreement import code_digest, digest, same_everywhere, versions
from tests.processes import Pool


def _refused(cluster: Cluster, values: list[dict[str, str]]) -> str:
    try:
        same_everywhere(cluster, values[cluster.rank])
    except RegscaleError as error:
        return str(error)
    return "accepted"


CASES = [
    ([{"config": "a", "code": "b"}] * 3, "accepted"),
    (
        [{"config": "a"}, {"config": "c"}, {"config": "a"}],
        "config is a on rank 0, 2 and c on rank 1",
    ),
    ([{"a": "1", "b": "2"}, {"a": "1"}], "found b is 2 on rank 0 and absent on rank 1. Start"),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("values", "message"), CASES)
def test_every_rank_is_told_what_differs_and_where(
    pool: Pool, values: list[dict[str, str]], message: str
) -> None:
    for said in pool.run(len(values), _refused, values):
        assert message in said


@pytest.mark.distributed
def test_ranks_of_one_installation_agree(pool: Pool) -> None:
    assert pool.run(2, _compared) == [None] * 2


def _compared(cluster: Cluster) -> None:
    same_everywhere(cluster, versions())


def test_a_changed_line_of_code_changes_its_digest(tmp_path: Path) -> None:
    package = Path(regscale.__file__).parent
    copies = [tmp_path / name for name in ("same", "changed")]
    for copy in copies:
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copies[1] / "path.py").open("a") as file:
        file.write("# a comment")
    same, changed = map(code_digest, copies)
    assert same == code_digest() != changed


def test_a_digest_tells_texts_apart() -> None:
    assert digest("seed: 0") == digest("seed: 0") != digest("seed: 1")
