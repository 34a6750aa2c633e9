"""The backends of attention against the formula, the table of `auto`, and what a user reads."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from regscale.errors import RegscaleError
from regscale.layers import attention as package
from regscale.layers.attention import (
    BACKENDS,
    Setting,
    attention,
    available,
    choose,
    cudnn,
    decide,
    flash,
    flex,
    math,
    resolve,
)

CPU = Setting("cpu", (0, 0), torch.float32, 64, has_lengths=False, deterministic=False)
HERE = available(CPU)
HOPPER = CPU._replace(device_type="cuda", capability=(9, 0), dtype=torch.bfloat16)
AMPERE = HOPPER._replace(capability=(8, 0))


def qkv(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Views of one product, as a block of the model makes them."""
    g = torch.Generator().manual_seed(tokens + width)
    product = torch.randn(2, tokens, 3, 3, width, generator=g).to(dtype)
    return [x.requires_grad_() for x in product.permute(2, 0, 3, 1, 4).detach().unbind(0)]


def results(call: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of the inputs."""
    out = call(*inputs)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.mark.parametrize("backend", ["auto", *[b for b in HERE if b != "math"]])
@pytest.mark.parametrize("width", [64, 72])
@pytest.mark.parametrize("tokens", [257, 1025])
@pytest.mark.parametrize("padded", [False, True])
def test_a_backend_is_the_formula_forward_and_backward(
    backend: Any, width: int, tokens: int, padded: bool
) -> None:
    lengths = torch.tensor([tokens - 150, tokens]) if padded else None
    inputs = qkv(tokens, width)
    made = results(lambda *x: attention(*x, key_lengths=lengths, backend=backend), inputs)
    want = results(lambda *x: attention(*x, key_lengths=lengths, backend="math"), inputs)
    for a, b in zip(made, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)  # fp32, other order of sums


@pytest.mark.parametrize("width", [64, 72])
@pytest.mark.parametrize("lengths", [None, [100, 257]])
@pytest.mark.filterwarnings("ignore:flex_attention called")
def test_flex_is_the_formula_forward(width: int, lengths: list[int] | None) -> None:
    """torch has its backward on CUDA only."""
    inputs = [x.detach() for x in qkv(257, width)]
    given = None if lengths is None else torch.tensor(lengths)
    made, want = (backend.attend(*inputs, given) for backend in (flex, math))
    torch.testing.assert_close(made, want, rtol=1e-5, atol=2e-5)


def test_on_a_cpu_auto_is_the_call_of_the_published_code() -> None:
    """Bit for bit: the recorded numbers were computed so."""
    inputs = qkv(257, 72)
    made = results(attention, inputs)
    want = results(torch.nn.functional.scaled_dot_product_attention, inputs)
    assert all(torch.equal(a, b) for a, b in zip(made, want, strict=True))


@pytest.mark.parametrize("backend", ["auto", *HERE])
def test_padded_keys_have_no_influence(backend: Any) -> None:
    q, k, v = (x.detach() for x in qkv(9, 16))
    lengths = torch.tensor([4, 9])
    before = attention(q, k, v, key_lengths=lengths, backend=backend)
    k[0, :, 4:], v[0, :, 4:] = 1e4, -1e4
    after = attention(q, k, v, key_lengths=lengths, backend=backend)
    assert torch.equal(before, after)


def test_low_precision_attention_has_an_fp32_softmax() -> None:
    exact = attention(*qkv(33, 64), backend="math")
    half = attention(*qkv(33, 64, torch.bfloat16), backend="math")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.02)  # bf16 has 8 bits


@pytest.mark.parametrize("backend", ["auto", *HERE])
@pytest.mark.parametrize("padded", [False, True])
def test_to_a_compiler_attention_is_one_graph(backend: Any, padded: bool) -> None:
    torch._dynamo.reset()
    lengths = torch.tensor([5, 17]) if padded else None

    def call(*x: Tensor) -> Tensor:
        return attention(*x, key_lengths=lengths, backend=backend)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    inputs = qkv(17, 16)
    for a, b in zip(results(compiled, inputs), results(call, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ["flash", "flex"])
def test_other_devices_kernels_are_one_graph_as_well(
    monkeypatch: pytest.MonkeyPatch, backend: str, padded: bool
) -> None:
    """Traced here, where they cannot run."""
    torch._dynamo.reset()
    monkeypatch.setattr(package, "_remembered", lambda *_: backend)
    monkeypatch.setattr(flash, "_major", torch.compiler.assume_constant_result(lambda _: 9))
    lengths = torch.tensor([5, 17]) if padded else None
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
        graphs.append(graph.code)
        return lambda *_: [torch.zeros(2, 3, 17, 16)]

    def call(*x: Tensor) -> Tensor:
        return attention(*x, key_lengths=lengths, backend=backend)  # type: ignore[arg-type]

    torch.compile(call, fullgraph=True, backend=keep)(*[x.detach() for x in qkv(17, 16)])
    names = {"flex": "flex_attention", "flash": "scaled_dot_product_attention"}
    name = "varlen_attn" if padded and backend == "flash" else names[backend]
    assert len(graphs) == 1
    assert name in graphs[0]


class Package:
    """A flash-attn whose kernels are loops over sequences; it notes how it was called."""

    def __init__(self, *, returns_sums: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self.returns_sums = returns_sums

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        self.calls.append(options)
        return self._made(
            math.attend(*[x.transpose(1, 2) for x in (q, k, v)], None).transpose(1, 2)
        )

    def flash_attn_varlen_func(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        self.calls.append(options)
        return self._made(
            self._sequences(q, k, v, options["cu_seqlens_q"], options["cu_seqlens_k"])
        )

    def varlen_attn(
        self, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, *longest: int
    ) -> Any:
        self.calls.append({"longest": longest})
        return self._made(self._sequences(q, k, v, a, b))

    def _sequences(self, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype == torch.int32
        assert (int(a[-1]), int(b[-1])) == (len(q), len(k))
        outs = []
        for i in range(len(a) - 1):
            rows, keys = slice(int(a[i]), int(a[i + 1])), slice(int(b[i]), int(b[i + 1]))
            if rows.stop > rows.start:
                one = [x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys])]
                outs.append(math.attend(*one, None)[0].transpose(0, 1))
        return torch.cat(outs)

    def _made(self, out: Tensor) -> Any:
        return (out, out.sum(-1)) if self.returns_sums else out


@pytest.mark.parametrize("module", [*[name for name, _, _ in flash.PACKAGES], flash.TORCH])
@pytest.mark.parametrize("lengths", [None, [1, 17], [17, 17], [9, 4]])
def test_flash_gives_each_sample_its_keys_and_padding_no_gradient(
    monkeypatch: pytest.MonkeyPatch, module: str, lengths: list[int] | None
) -> None:
    """Packages of every shape take the sequences that the formula masks."""
    stand_in = Package(returns_sums=module != "flash_attn")
    monkeypatch.setattr(flash, "_major", lambda _: 9)
    monkeypatch.setattr(flash, "_module_name", lambda _: module)
    monkeypatch.setattr(flash, "_loaded", lambda _: stand_in)
    given = None if lengths is None else torch.tensor(lengths)
    inputs = qkv(17, 16)
    made = results(lambda *x: flash.attend(*x, given), inputs)
    want = results(lambda *x: math.attend(*x, given), inputs)
    for a, b in zip(made, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
    if lengths == [9, 4]:
        assert float(made[2][0, :, 9:].abs().max()) == 0
        assert float(made[3][1, :, 4:].abs().max()) == 0


def test_flash_is_asked_for_a_deterministic_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Package()
    monkeypatch.setattr(flash, "_major", lambda _: 9)
    monkeypatch.setattr(flash, "_module_name", lambda _: "flash_attn")
    monkeypatch.setattr(flash, "_loaded", lambda _: stand_in)
    inputs = [x.detach() for x in qkv(5, 16)]
    for on in (False, True):
        torch.use_deterministic_algorithms(mode=on)
        try:
            for lengths in (None, torch.tensor([3, 5])):
                flash.attend(*inputs, lengths)
        finally:
            torch.use_deterministic_algorithms(mode=False)
    assert [call["deterministic"] for call in stand_in.calls] == [False, False, True, True]


EVERY = ("flash", "cudnn", "sdpa", "flex", "math")


@pytest.mark.parametrize(
    ("setting", "present", "backend"),
    [
        (CPU, EVERY, "sdpa"),
        (CPU._replace(device_type="mps", dtype=torch.float16), EVERY, "sdpa"),
        (HOPPER._replace(dtype=torch.float32, has_lengths=True), EVERY, "sdpa"),
        (HOPPER, EVERY, "cudnn"),
        (HOPPER._replace(capability=(10, 0)), EVERY, "cudnn"),
        (HOPPER, ("flash", "sdpa", "flex", "math"), "sdpa"),  # an old cuDNN, or deterministic
        (HOPPER._replace(has_lengths=True), EVERY, "flash"),
        (HOPPER._replace(has_lengths=True), ("cudnn", "sdpa", "math"), "cudnn"),
        (AMPERE, EVERY, "sdpa"),
        (AMPERE._replace(has_lengths=True), EVERY, "flash"),
        (AMPERE._replace(has_lengths=True), ("sdpa", "math"), "sdpa"),
    ],
)
def test_auto_follows_the_table(setting: Setting, present: tuple[str, ...], backend: str) -> None:
    made, reason = choose(setting, present)
    assert made == backend
    assert reason


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, cudnn_version: int = 0) -> None:
    """A machine with these modules and this cuDNN."""
    monkeypatch.setattr(flash, "installed", lambda name: name in names)
    monkeypatch.setattr(cudnn, "version", lambda: cudnn_version)


def test_what_is_available_depends_on_packages_and_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available(CPU) == ("sdpa", "math")
    installed(monkeypatch, flash.TORCH, cudnn_version=91501)
    assert available(HOPPER) == EVERY
    assert available(HOPPER._replace(head_dim=72)) == EVERY
    assert "cudnn" not in available(HOPPER._replace(deterministic=True))
    assert "cudnn" not in available(HOPPER._replace(head_dim=136))
    assert "flash" not in available(HOPPER._replace(dtype=torch.float32))
    assert "flash" not in available(HOPPER._replace(capability=(7, 5)))
    installed(monkeypatch, cudnn_version=91500)
    assert available(HOPPER) == ("flash", "sdpa", "flex", "math")
    assert "flash" not in available(HOPPER._replace(has_lengths=True))
    installed(monkeypatch, "flash_attn")
    assert "flash" in available(HOPPER._replace(has_lengths=True))


@pytest.mark.parametrize(
    ("names", "capability", "kernel"),
    [
        (("flash_attn", "flash_attn_interface", "flash_attn.cute"), (8, 0), "flash_attn "),
        (
            ("flash_attn", "flash_attn_interface", "flash_attn.cute"),
            (9, 0),
            "flash_attn_interface ",
        ),
        (("flash_attn", "flash_attn_interface", "flash_attn.cute"), (10, 0), "flash_attn.cute "),
        (("flash_attn",), (9, 0), "flash_attn "),
        (("flash_attn_interface",), (8, 6), "torch "),
        ((), (9, 0), "torch "),
    ],
)
def test_flash_takes_the_package_that_is_made_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    capability: tuple[int, int],
    kernel: str,
) -> None:
    installed(monkeypatch, *names)
    made = flash.kernel(HOPPER._replace(capability=capability))
    assert made.startswith(kernel)


def test_a_choice_is_logged_with_its_reason_and_fit_for_a_checkpoint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        made = resolve("auto", device=torch.device("cpu"), dtype=torch.bfloat16, head_dim=72)
    assert made._asdict() == {
        "backend": "sdpa",
        "kernel": f"torch {torch.__version__}",
        "reason": "the fused kernel of this device",
        "setting": "bfloat16 on cpu, head width 72",
    }
    assert caplog.messages == [
        f"attention sdpa (torch {torch.__version__}) for bfloat16 on cpu, head width 72: "
        "the fused kernel of this device"
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_the_meta_device_every_backend_has_a_shape(backend: Any) -> None:
    """FLOPs are counted there, of runs meant for other machines."""
    inputs = [torch.empty(2, 3, 17, 16, device="meta") for _ in range(3)]
    assert attention(*inputs, backend=backend).shape == (2, 3, 17, 16)


@pytest.mark.parametrize("call", ["attention", "resolve"])
@pytest.mark.parametrize("backend", ["flash", "cudnn"])
def test_a_backend_asked_for_by_name_is_refused_where_it_cannot_run(
    backend: Any, call: str
) -> None:
    with pytest.raises(RegscaleError) as caught:
        if call == "attention":
            attention(*qkv(5, 16), backend=backend)
        else:
            resolve(backend, device=torch.device("cpu"), dtype=torch.float32, head_dim=16)
    assert str(caught.value) == (
        f"model.attention: {backend} needs an NVIDIA device of compute capability 8.0 or later; "
        "found float32 on cpu, head width 16. Choose auto."
    )


@pytest.mark.parametrize(
    ("backend", "setting", "message"),
    [
        ("flash", {"dtype": torch.float32}, r"needs bf16 or fp16; .* another engine\.precision"),
        ("cudnn", {"head_dim": 60}, r"multiple of 8 up to 128; .* width 60.* num_heads"),
        ("cudnn", {"deterministic": True}, r"leave to differ .*; found deterministic: true"),
        ("cudnn", {}, r"needs cuDNN 91501 or later; found 90100 with torch"),
        ("flash", {"has_lengths": True}, r"flash-attn, or torch 2\.10, for key lengths"),
    ],
)
def test_a_refusal_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, backend: Any, setting: dict[str, Any], message: str
) -> None:
    installed(monkeypatch, cudnn_version=90100)
    with pytest.raises(RegscaleError, match=message):
        decide(backend, HOPPER._replace(**setting))


def test_a_folder_without_code_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn-4 alone leaves `flash_attn` as a folder that holds only `cute`."""
    flash.installed.cache_clear()
    monkeypatch.setattr(flash, "find_spec", lambda _: SimpleNamespace(origin=None))
    assert not flash.installed("flash_attn")
    flash.installed.cache_clear()
