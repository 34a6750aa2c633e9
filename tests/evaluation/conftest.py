"""Makes torchvision importable, for torch-fidelity, where it is there, and trains one tiny run."""

from pathlib import Path

import pytest

import tests.sitecustomize  # noqa: F401
from regscale import assemble
from regscale.config import load
from regscale.recipe import RunConfig
from regscale.training import train
from tests.conftest import TINY


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the tiny digits model; enough steps that conditions matter."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    options = [f"runs={folder / 'runs'}", "training.num_steps=60", "training.log_every=60"]
    job = assemble.job(load(RunConfig, folder / "tiny.yaml", options))
    train(job)
    return job.folder


@pytest.fixture(scope="session")
def loaded(run: Path) -> assemble.Loaded:
    return assemble.trained(run, device="cpu")
