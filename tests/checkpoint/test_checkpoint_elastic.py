"""F11: a checkpoint of any engine on any number of ranks loads under any other, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoint.ranks import owned, work
from tests.processes import Pool

pytestmark = pytest.mark.distributed

SEVERAL = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
RING = [("ddp", 2), ("zero3", 3), ("fsdp2", 2), ("zero2", 4), ("zero1", 3), ("single", 1)]
SAVED = [("single", 1), ("hsdp", 4), *[(kind, 2) for kind in SEVERAL]]
LOADED = [
    *[("single", 1), ("hsdp", 4)],
    *[(kind, size) for kind in SEVERAL for size in (1, 2, 3, 4)],
]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol, msg=name)


def test_engines_hand_one_run_around(pool: Pool, tmp_path: Path) -> None:
    """Each loads what the one before saved, exactly, and trains on; in the end the weights,
    moments and averages are those of an undisturbed run."""
    pytest.importorskip("deepspeed")
    before: dict[str, Tensor] | None = None
    for number, (kind, size) in enumerate(RING):
        source = None if before is None else str(tmp_path / str(number - 1))
        results = pool.run(size, work, kind, source, str(tmp_path / str(number)), 2)
        loaded, trained = results[0]
        if before is not None:
            assert_same(loaded, before, atol=0)
        before = trained
    assert before is not None
    [(_, undisturbed)] = pool.run(1, work, "single", None, None, 2 * len(RING))
    # fp32 sums of gradients in the order of ranks; ten updates of at most 0.01 each
    assert_same(before, undisturbed, atol=1e-5)


@pytest.mark.parametrize(("kind", "size"), [("ddp", 3), ("hsdp", 4)])
def test_copies_share_the_writing(pool: Pool, kind: str, size: int) -> None:
    """What several ranks hold is written by one of them, and by every rank some."""
    ranks = pool.run(size, owned, kind)
    ranges = [(name, start, stop) for rank in ranks for name, start, stop, _ in rank]
    assert len(set(ranges)) == len(ranges)
    sizes = [sum(nbytes for *_, nbytes in rank) for rank in ranks]
    [everything] = pool.run(1, owned, "single")
    assert sum(sizes) == sum(nbytes for *_, nbytes in everything)
    assert max(sizes) < 0.75 * sum(sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), SAVED)
def test_every_engine_loads_from_every_engine(
    pool: Pool, tmp_path: Path, kind: str, size: int
) -> None:
    pytest.importorskip("deepspeed")
    saved = pool.run(size, work, kind, None, str(tmp_path), 3)[0][1]
    followed = pool.run(size, work, kind, str(tmp_path), None, 1)[0][1]
    for other, ranks in LOADED:
        loaded, trained = pool.run(ranks, work, other, str(tmp_path), None, 1)[0]
        assert_same(loaded, saved, atol=0)
        assert_same(trained, followed, atol=1e-5)
