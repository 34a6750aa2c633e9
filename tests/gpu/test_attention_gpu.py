"""Every backend of attention that a CUDA device has, against the formula in fp64."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from regscale.layers.attention import BACKENDS, Setting, attention, available, decide

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
# Relative to the norm: bf16 keeps 8 bits of what goes in and out, fp16 11; fp32 kernels may split a
# product into parts of TF32.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """fp32 means fp32 in the formula."""
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = kept


def qkv(tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Views of one product of 3 samples and 4 heads, as a block of the model makes them."""
    generator = torch.Generator().manual_seed(tokens + head_dim)
    product = torch.randn(3, tokens, 3, 4, head_dim, generator=generator)
    return product.to(DEVICE, dtype).permute(2, 0, 3, 1, 4).unbind(0)


def lengths_of(tokens: int, *, padded: bool) -> Tensor | None:
    """Key lengths one over a block of 128, of a third of the keys, and of all."""
    return torch.tensor([129, tokens // 3, tokens], device=DEVICE) if padded else None


def results(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The output and the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(*leaves)
    generator = torch.Generator().manual_seed(out.shape[2])
    weights = torch.randn(out.shape, generator=generator).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


@cache
def formula(tokens: int, head_dim: int, dtype: torch.dtype, padded: bool) -> list[Tensor]:
    """In fp64, of inputs rounded to `dtype`."""
    lengths = lengths_of(tokens, padded=padded)
    inputs = tuple(x.double() for x in qkv(tokens, head_dim, dtype))
    return results(lambda *x: attention(*x, key_lengths=lengths, backend="math"), inputs)


def need(backend: Any, dtype: torch.dtype, head_dim: int, *, padded: bool) -> None:
    """Skip where the backend cannot run."""
    setting = Setting.of(DEVICE, dtype, head_dim=head_dim, has_lengths=padded)
    if backend != "auto" and backend not in available(setting):
        pytest.skip(f"{backend} cannot compute {setting}")
    print(decide(backend, setting))  # noqa: T201  # which package it was, beside a failure


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("tokens", [257, 1025])
@pytest.mark.parametrize("padded", [False, True])
def test_a_backend_is_the_formula_forward_and_backward(
    backend: Any, dtype: torch.dtype, head_dim: int, tokens: int, padded: bool
) -> None:
    need(backend, dtype, head_dim, padded=padded)
    lengths = lengths_of(tokens, padded=padded)
    inputs = qkv(tokens, head_dim, dtype)
    made = results(lambda *x: attention(*x, key_lengths=lengths, backend=backend), inputs)
    for a, b in zip(made, formula(tokens, head_dim, dtype, padded), strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).norm() / b.norm()) < TOLERANCES[dtype]
    if padded:
        assert all(float(gradient[0, :, 129:].abs().max()) == 0 for gradient in made[2:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padded", [False, True])
def test_attention_never_waits_for_the_device(backend: Any, padded: bool) -> None:
    need(backend, torch.bfloat16, 72, padded=padded)
    inputs = qkv(257, 72, torch.bfloat16)
    lengths = lengths_of(257, padded=padded)

    def call() -> None:
        results(lambda *x: attention(*x, key_lengths=lengths, backend=backend), inputs)

    call()  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("backend", ["auto", "flash", "sdpa", "flex"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_backward_repeats_its_bits_where_that_is_asked_for(backend: Any, padded: bool) -> None:
    """At 1025 keys, so that several blocks of keys add to a query's gradient."""
    need(backend, torch.bfloat16, 72, padded=padded)
    inputs = qkv(1025, 72, torch.bfloat16)
    lengths = lengths_of(1025, padded=padded)
    first, *others = [
        results(lambda *x: attention(*x, key_lengths=lengths, backend=backend), inputs)
        for _ in range(5)
    ]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("backend", ["auto", "cudnn", "sdpa", "flex", "math"])
@pytest.mark.parametrize("padded", [False, True])
def test_compiled_is_eager(backend: Any, padded: bool) -> None:
    """Other orders of sums: in the last bits of bf16."""
    need(backend, torch.bfloat16, 72, padded=padded)
    torch._dynamo.reset()
    lengths = lengths_of(257, padded=padded)

    def call(*x: Tensor) -> Tensor:
        return attention(*x, key_lengths=lengths, backend=backend)

    inputs = qkv(257, 72, torch.bfloat16)
    made = results(torch.compile(call, fullgraph=True), inputs)
    for a, b in zip(made, results(call, inputs), strict=True):
        assert float((a.double() - b.double()).norm() / b.double().norm()) < 2e-2
