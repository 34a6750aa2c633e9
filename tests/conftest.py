"""A run small enough for tests: embedded digits, a tiny SiT, everything switched on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from regscale.config import load
from regscale.recipe import RunConfig
from tests.processes import Pool, leave

TINY = """
name: tiny
data: {kind: digits}
autoencoder: {kind: identity, channels: 1}
conditioning: {kind: class_label, num_classes: 10, names: digits}
targets: {vit: {kind: digits_vit}}
entangle: {vit: {weight: 0.03}}
align: {vit: {weight: 0.5, depth: 1, projector: 16}}
model: {kind: sit, depth: 2, hidden_size: 32, num_heads: 4, patch_size: 2}
optimizer: {learning_rate: 1e-3}
ema: {decays: [0.9, 0.99]}
device: cpu
training:
  {num_steps: 6, batch_size: 8, num_workers: 0, log_every: 1, checkpoint_every: 4, preview_every: 0}
sampling: {solver: {kind: euler, num_steps: 3}}
"""

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bit-exact comparisons need one order of summation, and the machine has few cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_process_group_stays() -> Iterator[None]:
    """An engine that trained in a test's own process leaves none to the next test's children."""
    yield
    leave()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Other processes, which start once for all tests."""
    made = Pool()
    yield made
    made.close()


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny(tiny_file: Path, tmp_path: Path) -> MakeConfig:
    """The tiny run with overrides, its folder below the test's own."""

    def make(*overrides: str) -> RunConfig:
        return load(RunConfig, tiny_file, [f"runs={tmp_path / 'runs'}", *overrides])

    return make
