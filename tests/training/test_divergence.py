"""Ranks whose weights come apart are told from ranks that agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from regscale import assemble
from regscale.cluster import Cluster
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.recipe import RunConfig
from regscale.training.divergence import check, checksums
from regscale.types import Shard
from tests.conftest import MakeConfig
from tests.processes import Pool

WEIGHT = "blocks.0.attn.qkv.weight"
HSDP = ("engine.kind=fsdp2", "engine.shard_group=2")


def _checked(cluster: Cluster, file: str, options: tuple[str, ...], bad: tuple[int, ...]) -> str:
    """What `check` says where the lowest bit of one weight is flipped on the ranks `bad`."""
    job = assemble.job(load(RunConfig, Path(file), list(options)))
    check(job.engine, job.cluster, 11)
    if cluster.rank in bad:
        shard = next(s for s in job.engine.shards() if s.name == WEIGHT)
        shard.master.view(torch.int32)[7] ^= 1
    try:
        check(job.engine, job.cluster, 12)
    except RegscaleError as error:
        return str(error)
    return "the same"


CASES = [
    (2, ("engine.kind=ddp",), (), "the same"),
    (2, ("engine.kind=ddp",), (1,), f"'{WEIGHT}' differs between rank 0 and rank 1"),
    (3, ("engine.kind=ddp",), (1,), f"'{WEIGHT}' on rank 1 is not what rank 0, 2 holds"),
    (4, HSDP, (), "the same"),
    (4, HSDP, (3,), f"'{WEIGHT}' differs between rank 1 and rank 3"),
    (2, ("engine.kind=fsdp2",), (1,), "the same"),  # no two ranks hold one range
]


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "options", "bad", "message"), CASES)
def test_one_flipped_bit_of_one_weight_is_found_and_named_on_every_rank(
    pool: Pool,
    tiny_file: Path,
    size: int,
    options: tuple[str, ...],
    bad: tuple[int, ...],
    message: str,
) -> None:
    options = (*options, "training.batch_size=12")
    for said in pool.run(size, _checked, str(tiny_file), options, bad):
        assert message in said
        assert said == "the same" or said.startswith("step 12: ")
        assert "more" not in said


def test_alone_there_is_nothing_to_compare(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    check(job.engine, job.cluster, 1)


@pytest.mark.parametrize("bit", range(32))
def test_any_flipped_bit_changes_a_checksum(tiny: MakeConfig, bit: int) -> None:
    """Also of a NaN, of a zero's sign, and of a sum that has gone round."""
    values = torch.tensor([1.0, -0.0, float("nan"), 3e38, -7.5, 1e-42])
    sums = []
    for place in (None, *range(6)):
        held = values.clone()
        if place is not None:
            held.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
        sums.append(int(checksums(_Holds(held))["w"]))
    assert all(changed != sums[0] for changed in sums[1:])


class _Holds:
    """An engine that holds one tensor."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def shards(self) -> Iterator[Shard]:
        yield Shard("w", (6,), 0, 6, owner=True, master=self.values, optimizer={})
