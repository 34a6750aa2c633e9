"""A model that reads text trains alike on every engine, also on pictures of several sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conditioning.test_frozen_text import t5_folder  # noqa: F401
from tests.data.packing import index, pack, picture_of
from tests.parallel import cases
from tests.parallel.conftest import Runs
from tests.processes import Pool

pytestmark = pytest.mark.distributed
TEXT = """
name: tiny_text
data: {kind: shapecaps, num_samples: 64}
autoencoder: {kind: identity, channels: 3}
conditioning: {kind: words, width: 16}
model:
  {kind: sit, depth: 2, hidden_size: 32, num_heads: 4, patch_size: 8, qk_norm: true,
   qk_norm_kind: rms, rope: true}
optimizer: {learning_rate: 1e-3}
ema: {decays: [0.9, 0.99]}
device: cpu
training:
  {num_steps: 6, batch_size: 8, num_workers: 0, log_every: 1, checkpoint_every: 4, preview_every: 0}
sampling: {solver: {kind: euler, num_steps: 3}}
"""
TOWERS = """
conditioning: {kind: t5, model: T5, max_length: 12, examples: [a circle]}
targets: {shapes_vit: {kind: shapes_vit}}
entangle: {shapes_vit: {weight: 0.03}}
align: {shapes_vit: {weight: 0.5, depth: 1, projector: 24}}
"""
STEPS, BUCKET_STEPS = 10, 6
SIZES = {"16x32": 3, "24x24": 9, "32x16": 6}  # of buckets, and their pictures


@pytest.fixture(scope="module")
def text_runs(pool: Pool, tmp_path_factory: pytest.TempPathFactory, t5_folder: Path) -> Runs:  # noqa: F811
    """REG under a prompt: a frozen T5 and a frozen target, neither of them in the engine."""
    file = tmp_path_factory.mktemp("text") / "tiny.yaml"
    plain = TEXT.replace("conditioning: {kind: words, width: 16}\n", "")
    file.write_text(plain + TOWERS.replace("T5", str(t5_folder)))
    return Runs(pool, file)


@pytest.fixture(scope="module")
def bucket_runs(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("buckets")
    sources = {}
    for name, count in SIZES.items():
        height, width = map(int, name.split("x"))
        samples = [
            (f"s{i}", {"png": picture_of(i, (height, width)), "txt": b"a red circle"})
            for i in range(count)
        ]
        pack(root / name / "0.tar", samples)
        index(root / name)
        fields = ["images", "captions"]
        about = {"kind": "shards", "urls": [str(root / name)], "fields": fields}
        sources[name] = about | {"image_size": name}
    data = {"kind": "buckets", "batch_size": "${training.batch_size}", "sources": sources}
    text = TEXT.replace("{kind: shapecaps, num_samples: 64}", json.dumps(data))
    (root / "tiny.yaml").write_text(text)
    return Runs(pool, root / "tiny.yaml")


RECOMPUTED = ("engine.recompute=full",)


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("engine", "mode", "more"),
    [
        ("ddp", "joint", ()),
        ("fsdp2", "gated", RECOMPUTED),
        ("zero3", "joint", RECOMPUTED),
        slow("ddp", "gated", ()),
        slow("fsdp2", "joint", RECOMPUTED),
        slow("zero3", "gated", RECOMPUTED),
        *[slow(engine, mode, ()) for engine in ("zero1", "zero2") for mode in ("joint", "gated")],
    ],
)
def test_every_engine_trains_text_as_single_does(
    text_runs: Runs, engine: str, mode: str, more: tuple[str, ...]
) -> None:
    text = f"model.text={mode}"
    (want,) = text_runs(1, cases.trained, "single", text, steps=STEPS)
    for made in text_runs(2, cases.trained, engine, text, *more, steps=STEPS):
        assert made["start"] == want["start"]
        for ours, theirs in zip(made["losses"], want["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)  # sums in another order


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("fsdp2", ("training.micro_batch=2", "engine.recompute=full")),
        pytest.param("ddp", ("training.micro_batch=2",), marks=pytest.mark.slow),
        pytest.param("zero2", (), marks=pytest.mark.slow),
        pytest.param("fsdp2", ("engine.compile=true",), marks=pytest.mark.slow),
    ],
)
def test_every_engine_trains_buckets_as_single_does(
    bucket_runs: Runs, engine: str, more: tuple[str, ...]
) -> None:
    """All ranks and micro-batches of a batch have one size, and 6 batches have all three."""
    (want,) = bucket_runs(1, cases.trained, "single", steps=BUCKET_STEPS)
    for made in bucket_runs(2, cases.trained, engine, *more, steps=BUCKET_STEPS):
        assert made["start"] == want["start"]
        for ours, theirs in zip(made["losses"], want["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)  # sums in another order


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_in_bf16_the_losses_have_the_bits_of_single(text_runs: Runs, engine: str) -> None:
    """As gathered copies and weights cast at use are the same numbers, gates and norms included."""
    values = ("model.text=gated", "engine.precision=bf16")
    (want,) = text_runs(1, cases.trained, "single", *values, steps=STEPS)
    (made,) = text_runs(1, cases.trained, engine, *values, steps=STEPS)
    assert made["losses"] == want["losses"]
