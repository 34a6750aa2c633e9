"""A thousand images of the digits model: the same bytes however they are drawn."""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from regscale import assemble
from regscale.cluster import Cluster, join
from regscale.config import load
from regscale.recipe import RunConfig
from regscale.sampling import GuidanceConfig, Sampler, many
from regscale.sampling.many import Wanted
from regscale.training import train
from tests.evaluation.test_many import contents
from tests.processes import Pool

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WANTED = [Wanted(str(i % 10), i) for i in range(1000)]
BRIEF = ["training.num_steps=20", "training.batch_size=32", "sampling.solver.num_steps=3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits run at its own size, after few steps, drawn in few."""
    options = [f"runs={tmp_path_factory.mktemp('digits')}", "device=cpu", *BRIEF]
    job = assemble.job(load(RunConfig, Path("configs/digits.yaml"), options))
    train(job)
    return job.folder


@cache
def sampler(run: str) -> Sampler:
    return assemble.trained(Path(run), device="cpu").sampler


def drawn(cluster: Cluster, run: str, folder: str, batch_size: int) -> int:
    return many.draw(
        sampler(run),
        WANTED,
        Path(folder),
        guidance=GuidanceConfig(scale=1.5),
        facts={"checkpoint": "digits"},
        cluster=cluster,
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    assert drawn(join("cpu"), str(digits), str(folder), 64) == 1000
    found = contents(folder)
    assert len(set(found.values())) == len(found) == 1001  # and their making
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_bytes_of_a_thousand_do_not_depend_on_processes_and_batch_size(
    digits: Path, tmp_path: Path, whole: dict[str, str], pool: Pool, size: int, batch_size: int
) -> None:
    made = pool.run(size, drawn, str(digits), str(tmp_path / "out"), batch_size)
    assert made == [1000] * size
    assert contents(tmp_path / "out") == whole


SCRIPT = """
import sys
import torch
from regscale.cluster import join
from tests.evaluation.test_thousand import drawn
torch.set_num_threads(1)
drawn(join("cpu"), sys.argv[1], sys.argv[2], 64)
"""


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (2, 7), (4, 64)])
def test_a_thousand_that_were_killed_half_way_end_as_the_same_bytes(
    digits: Path, tmp_path: Path, whole: dict[str, str], pool: Pool, size: int, batch_size: int
) -> None:
    folder = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["."])}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, digits, folder], env=environment)
    while process.poll() is None and len(list(folder.glob("0*.png"))) < 500:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 500 <= len(list(folder.glob("0*.png"))) < 1000
    left = pool.run(size, drawn, str(digits), str(folder), batch_size)
    assert 0 < left[0] < 1000
    assert contents(folder) == whole
