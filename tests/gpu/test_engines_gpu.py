"""Every engine on one CUDA device: the same training as single, memory, recompute, compile."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from regscale.cluster import join
from regscale.training.loop import open_loader, update
from tests.conftest import TINY
from tests.parallel import cases
from tests.parallel.conftest import COMMON, ENGINES
from tests.processes import leave

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Wide enough that weights and activations, not what a library keeps, are what memory holds.
WIDE = ("model.hidden_size=512", "model.depth=8", "training.batch_size=64")
SEVERAL = [name for name in ENGINES if name != "single"]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Groups and what engines set for the process are undone."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = [flag.allow_tf32 for flag in flags]
    yield
    leave()
    torch.use_deterministic_algorithms(mode=False)
    for flag, value in zip(flags, kept, strict=True):
        flag.allow_tf32 = value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def options(file: Path, engine: str, *overrides: str) -> tuple[str, ...]:
    common = (*COMMON, f"runs={file.parent}", "device=cuda")
    return (*common, *ENGINES[engine], "engine.tf32=false", *overrides)


def trained(file: Path, engine: str, *overrides: str) -> dict[str, Any]:
    try:
        return cases.trained(join("cuda"), str(file), options(file, engine, *overrides), 8)
    finally:
        leave()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-3)])
@pytest.mark.parametrize("engine", SEVERAL)
def test_every_engine_trains_as_single_does(
    file: Path, engine: str, precision: str, tolerance: float
) -> None:
    """Kernels may be chosen by the alignment of a range: losses to the last bits of a product."""
    given = f"engine.precision={precision}"
    want, made = trained(file, "single", given), trained(file, engine, given)
    assert made["start"] == want["start"]
    assert made["losses"] == pytest.approx(want["losses"], rel=tolerance)
    assert made["norms"] == pytest.approx(want["norms"], rel=10 * tolerance)


@pytest.mark.parametrize("engine", ["single", "ddp", "zero2", "zero3"])
def test_an_overflow_in_fp16_is_skipped(file: Path, engine: str) -> None:
    given = options(file, engine, "engine.precision=fp16")
    made = cases.poisoned(join("cuda"), str(file), given, {1: 1e30})
    assert made["applied"] == [True, False, True, True, True, True]
    assert made["unchanged"][1]
    assert made["scales"] == [2.0**16] + [2.0**15] * 5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_loss_is_skipped(file: Path, engine: str) -> None:
    bad = {1: float("nan"), 3: float("inf")}
    made = cases.poisoned(join("cuda"), str(file), options(file, engine), bad)
    assert made["applied"] == [True, False, True, False, True, True]
    assert made["unchanged"] == [not each for each in made["applied"]]


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_on_the_way_disturb_nothing(file: Path, engine: str) -> None:
    given = options(file, engine, "engine.deterministic=true")
    assert cases.drawn(join("cuda"), str(file), given)["undisturbed"]


@pytest.mark.parametrize("engine", ENGINES)
def test_alignment_stops(file: Path, engine: str) -> None:
    made = cases.stopped(join("cuda"), str(file), options(file, engine, "align.vit.stop_step=2"))
    assert made["kept"]
    assert made["left"] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_compiled_blocks_train_as_eager_ones(file: Path, engine: str) -> None:
    want = trained(file, engine, "model.depth=1")
    made = trained(file, engine, "model.depth=1", "engine.compile=true")
    assert made["losses"] == pytest.approx(want["losses"], rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_changes_nothing(file: Path, stage: int) -> None:
    want = trained(file, f"zero{stage}")
    made = trained(file, f"zero{stage}", "engine.offload=cpu")
    assert made["losses"] == pytest.approx(want["losses"], rel=1e-5)


def peak(file: Path, engine: str, *overrides: str) -> int:
    """Bytes at the height of an update, the first two left out."""
    gc.collect()
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated()
    job = cases.job_of(str(file), options(file, engine, "engine.precision=bf16", *overrides))
    feed = open_loader(job, 0)
    for step in range(4):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        update(job, next(feed))
    feed.close()
    leave()
    return torch.cuda.max_memory_allocated() - base


@pytest.mark.parametrize("engine", ENGINES)
def test_recompute_gives_memory_back(file: Path, engine: str) -> None:
    """All activations of eight blocks, against those between blocks."""
    none, selective, full = (
        peak(file, engine, *WIDE, f"engine.recompute={kind}")
        for kind in ("none", "selective", "full")
    )
    assert full < selective < none


@pytest.mark.parametrize("engine", SEVERAL)
def test_at_one_rank_an_engine_takes_little_more_than_single(file: Path, engine: str) -> None:
    """Weights, moments and averages are the same; buckets and gathered blocks come on top."""
    buckets = ("engine.bucket_elements=1000000",) if engine.startswith("zero") else ()
    given = (*WIDE, "engine.recompute=full")
    assert peak(file, engine, *given, *buckets) < 1.5 * peak(file, "single", *given)
