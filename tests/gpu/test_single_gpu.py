"""The single engine on a CUDA device: precision, attention, no waiting, resume and sampling."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks._step_case import Case, tensors
from benchmarks._step_loops import Regscale
from benchmarks._step_sampling import regscale_sampler, sample_by_regscale
from regscale import assemble, chance
from regscale.checkpoint import Reader, candidates
from regscale.data import batches
from regscale.layers.attention import attention
from regscale.layers.initial import materialise
from regscale.models.sit import SiT
from regscale.training import Job, train
from regscale.training.loop import open_loader, update
from regscale.training.window import Window
from regscale.types import Batch
from tests.conftest import MakeConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """fp32 means fp32 here; engines are made with tf32=false, and what they set is undone."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = False
    yield
    for flag, value in zip(flags, kept, strict=True):
        flag.allow_tf32 = value


def cuda_job(tiny: MakeConfig, *overrides: str) -> Job:
    return assemble.job(tiny("device=cuda", "engine.tf32=false", *overrides))


def first_batches(job: Job, count: int) -> list[Batch]:
    """The first batches of the run, as the loop gets them: on the host, in pinned memory."""
    endless = batches(
        job.source,
        job.shapes,
        seed=job.seed,
        start=0,
        batch_size=job.config.batch_size,
        pin_memory=True,
    )
    return [next(endless) for _ in range(count)]


def losses_of(job: Job, given: list[Batch]) -> list[float]:
    """The loss before each update."""
    return [float(update(job, batch)[0][0]) for batch in given]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_of_one_batch_falls(tiny: MakeConfig, precision: str) -> None:
    """The same samples and noise again and again: the loss falls without a detour."""
    job = cuda_job(tiny, f"engine.precision={precision}")
    losses = losses_of(job, first_batches(job, 1) * 60)
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 5e-3)])
def test_low_precision_stays_close_to_fp32(
    tiny: MakeConfig, precision: str, tolerance: float
) -> None:
    """bf16 keeps 8 bits, fp16 11, of every product; errors of single products average out."""
    exact = cuda_job(tiny)
    given = first_batches(exact, 20)
    want = losses_of(exact, given)
    made = losses_of(cuda_job(tiny, f"engine.precision={precision}"), given)
    assert made == pytest.approx(want, rel=tolerance)


def attended(q: Tensor, k: Tensor, v: Tensor, *, backend: Any) -> list[Tensor]:
    """The output of attention and the gradients of its inputs, in fp64."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    made = attention(*leaves, backend=backend)
    made.backward(torch.ones_like(made).cumsum(2) / made.shape[2])
    return [made.detach().double(), *[x.grad.double() for x in leaves if x.grad is not None]]


@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_sdpa_is_the_formula(head_dim: int, dtype: str, tolerance: float) -> None:
    """At REG's 257 places, forward and backward, relative to the norm. bf16 has 8 bits; fp32
    kernels may split a product into parts of TF32."""
    generator = torch.Generator().manual_seed(head_dim)
    q, k, v = torch.randn(3, 4, 8, 257, head_dim, generator=generator).to(
        DEVICE, getattr(torch, dtype)
    )
    want = attended(q.double(), k.double(), v.double(), backend="sdpa")  # fp64 has no other kernel
    for backend in ("sdpa", "math"):
        for a, b in zip(attended(q, k, v, backend=backend), want, strict=True):
            assert float((a - b).norm() / b.norm()) < tolerance, backend


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_never_waits_for_the_device(tiny: MakeConfig, precision: str) -> None:
    job = cuda_job(tiny, f"engine.precision={precision}")
    window = Window(job.quantities(), DEVICE)
    first, second, *rest = first_batches(job, 5)
    for batch in (first, second):  # libraries set themselves up
        window.add(*update(job, batch))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in rest:
            window.add(*update(job, batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert window.read()["skipped"] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_resumes_to_the_bit(tiny: MakeConfig, precision: str) -> None:
    """With deterministic kernels; flash attention's backward is deterministic only when asked."""
    common = [f"engine.precision={precision}", "engine.deterministic=true"]
    try:
        whole = cuda_job(tiny, "name=whole", "training.num_steps=9", *common)
        train(whole)
        for steps in (4, 9):
            parts = cuda_job(tiny, "name=parts", f"training.num_steps={steps}", *common)
            train(parts)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    (a, b) = (newest_tensors(job.folder) for job in (whole, parts))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def newest_tensors(folder: Path) -> dict[str, Tensor]:
    reader = Reader(candidates(folder / "checkpoints")[0])
    return {name: reader.tensor(name) for name in reader.names()}


def model_on(device: torch.device) -> SiT:
    """The same weights on any device, none of them zero."""
    model = Case(depth=2, hidden_size=64, num_heads=4, patch_size=4).model()
    materialise(model, seed=0, device=device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(0.05 * chance.normal(p.shape, seed=1, purpose=name).to(device))
    return model.eval()


def test_a_picture_is_the_one_of_the_cpu() -> None:
    """The noise is made on the host, the state is fp64: what differs is fp32 in the model."""
    devices = (torch.device("cpu"), DEVICE)
    made = [
        sample_by_regscale(
            regscale_sampler(model_on(device), 10, device), torch.arange(4, device=device)
        )
        for device in devices
    ]
    torch.testing.assert_close(made[1].cpu(), made[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_compiled_is_eager(precision: str, tolerance: float) -> None:
    """Other kernels round differently: in the last bit of the precision, over six updates."""
    losses: dict[bool, list[float]] = {False: [], True: []}
    for compiled, values in losses.items():
        case = Case(
            depth=2,
            hidden_size=144,
            num_heads=2,
            precision=precision,
            compile=compiled,
            batch_size=4,
        )
        loop = Regscale(case, DEVICE)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        for seed in range(6):
            batch = case.batch(seed, DEVICE)
            loop.step(batch, tensors(batch))
            values.append(loop.loss())
    assert losses[True] == pytest.approx(losses[False], rel=tolerance)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gradient_that_is_not_finite_is_skipped(tiny: MakeConfig, precision: str) -> None:
    job = cuda_job(tiny, f"engine.precision={precision}")
    parameters = list(job.engine.model.parameters())
    before = [p.detach().clone() for p in parameters]
    for value in (float("nan"), float("inf"), 1.0):
        for p in parameters:
            p.grad = torch.full_like(p, value)
        applied = bool(job.engine.step().applied)
        same = all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert applied == math.isfinite(value) == (not same)
    progress = job.engine.progress()
    assert set(progress["optimizer_steps"].values()) == {1.0}
    assert precision == "bf16" or progress["loss_scale"][0] == 2.0**14


def test_batches_copied_beside_the_step_hold_what_the_host_sent(tiny: MakeConfig) -> None:
    """The side stream's copies, while kernels of the main stream are under way."""
    job = cuda_job(tiny)
    ahead = open_loader(job, 0)
    busy = torch.randn(2048, 2048, device=DEVICE)
    for host in first_batches(job, 6):
        for _ in range(20):
            busy = (busy @ busy).tanh()
        moved = next(ahead)
        assert moved.images is not None
        assert moved.noise is not None
        assert moved.images.is_cuda
        assert torch.equal(moved.images.cpu(), host.images)
        assert torch.equal(moved.noise.latents.cpu(), host.noise.latents)
    ahead.close()
