"""The step benchmark compares like with like, asks the host for nothing and writes its report."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import _step_timing, gpu, step
from benchmarks._step_case import LATENT_SHAPE, TOKEN_SHAPE, Case, tensors
from benchmarks._step_loops import ENGINES, Loop, build
from benchmarks._step_sampling import regscale_sampler, sample_by_regscale, sample_plainly
from benchmarks.parity import has_true_gradient
from regscale.errors import RegscaleError
from regscale.sampling import ImageNoise
from regscale.types import Moments

CPU = torch.device("cpu")
TINY = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 8, "batch_size": 4}


def loops(case: Case) -> dict[str, Loop]:
    """All three, from the same weights."""
    made = {"regscale": build("regscale", case, {}, CPU)}
    start = made["regscale"].weights()
    return made | {name: build(name, case, start, CPU) for name in ("plain", "published_habits")}


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    squares = [float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True)]
    return sum(squares) ** 0.5


def trajectories(case: Case, made: dict[str, Loop], num_steps: int) -> dict[str, list[float]]:
    """The losses of each step; latents grow, so that some gradients are clipped and some not."""
    losses: dict[str, list[float]] = {name: [] for name in made}
    for seed in range(num_steps):
        batch = case.batch(seed, CPU)
        mean, std = batch.require("moments", by="the test")
        batch = replace(batch, moments=Moments(mean * 2.0**seed, std))
        for name, loop in made.items():
            loop.step(batch, tensors(batch))
            losses[name].append(loop.loss())
    return losses


SLOW = partial(pytest.param, marks=pytest.mark.slow)  # imports DeepSpeed


@pytest.mark.parametrize(
    "engine", [SLOW(name) if name.startswith("zero") else name for name in ENGINES]
)
def test_the_three_loops_do_the_same_work(engine: str) -> None:
    """Losses, weights and averages after some steps in fp32. They differ in the order of sums; the
    third of a bias that has no true gradient (keys) may differ by Adam's learning rate a step."""
    case = Case(**TINY, engine=engine)
    made = loops(case)
    own = made["regscale"]
    start = own.weights()
    losses = trajectories(case, made, 6)
    for name in ("plain", "published_habits"):
        assert losses[name] == pytest.approx(losses["regscale"], rel=1e-6), name
        parameters = dict(made[name].model.named_parameters())
        ended = own.weights()
        for key, b in parameters.items():
            a = ended[key]
            true = has_true_gradient(key, a, qk_norm=False)
            torch.testing.assert_close(a * true, b * true, rtol=0, atol=1e-6, msg=f"{name} {key}")
        # averages move by 1e-4 of a step, a few units in the last place
        began = [start[key] for key in parameters]
        moved = [distance(loop.averages(), began) for loop in (own, made[name])]
        assert moved[1] == pytest.approx(moved[0], rel=0.02), name


def test_the_plain_loop_has_regscales_precision() -> None:
    """In bf16 both round at the same places; autocast rounds at more (2^-8 relative)."""
    case = Case(**TINY, precision="bf16")
    losses = trajectories(case, loops(case), 4)
    assert losses["plain"] == pytest.approx(losses["regscale"], rel=1e-5)
    assert losses["published_habits"] == pytest.approx(losses["regscale"], rel=1e-2)


def test_the_two_samplers_make_the_same_picture() -> None:
    case, labels = Case(**TINY), torch.arange(4)
    model = build("regscale", case, {}, CPU).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # the last layers begin with zeros
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    normals = ImageNoise(tuple(range(4)), LATENT_SHAPE, (TOKEN_SHAPE,), CPU, torch.float64)

    def noise(number: int) -> tuple[Tensor, Tensor]:
        made = normals(number)
        return made.latents, made.tokens[0]

    own = sample_by_regscale(regscale_sampler(model, 5, CPU), labels)
    plain = sample_plainly(model, labels, noise, num_steps=5)
    torch.testing.assert_close(plain, own, rtol=0, atol=1e-5)  # times rounded to fp32 in forwards
    assert float((own - noise(0)[0]).abs().max()) > 1


class Fetched(TorchDispatchMode):
    """Counts values that the host reads from tensors; on a GPU each would wait for the device."""

    count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += "_local_scalar_dense" in str(operator)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_reads_nothing_on_the_host(precision: str) -> None:
    case = Case(**TINY, precision=precision)
    batch = case.batch(0, CPU)
    counts = {}
    for name, loop in loops(case).items():
        with Fetched() as fetched:
            loop.step(batch, tensors(batch))
        counts[name] = fetched.count
    assert counts["regscale"] == counts["plain"] == 0
    assert counts["published_habits"] >= 5


ARGUMENTS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
ARGUMENTS += ["--steps=1", "--repeats=2", "--clock=processor", "--device=cpu"]


def test_the_command_writes_its_report_and_adds_to_it(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "step.json"
    again = ["--peak-tflops=0.5"]  # replaces the first
    for extra in ([], ["--precision=bf16"], again, ["--engine=fsdp2"]):
        step.main([*ARGUMENTS, *extra, f"--out={path}"])
    report = json.loads(path.read_text())
    assert set(report) == {"device", "threads", "versions", "cases"}
    assert report["versions"]["torch"] == torch.__version__
    assert [case["settings"]["precision"] for case in report["cases"]] == ["bf16", "fp32", "fp32"]
    assert [case["settings"]["engine"] for case in report["cases"]] == ["single"] * 2 + ["fsdp2"]
    case = report["cases"][1]
    assert case["command"].endswith(f"--peak-tflops=0.5 --out={path}")
    figures = case["training"]["regscale"]
    rate = 3 * case["forward_gflop"] * figures["images_per_second"] / 500
    assert figures["mfu"] == pytest.approx(rate, rel=0.01)
    assert len(case["training"]["rate_over_plain"]["turns"]) == 2
    assert set(case["sampling"]) == {"regscale", "plain", "rate_over_plain"}
    assert report["cases"][2]["sampling"] is None
    assert len(gpu.lines(report)) == 3, "the summary of the GPU command reads this report"


def test_a_report_of_another_machine_is_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    step.add_case(path, {"device": "A"}, {"settings": {}})
    with pytest.raises(RegscaleError, match=r"of another machine.*Choose another file"):
        step.add_case(path, {"device": "B"}, {"settings": {}})


def test_turns_alternate_and_ratios_are_of_neighbours() -> None:
    order: list[str] = []
    blocks = {name: partial(order.append, name) for name in "ab"}
    for clock in _step_timing.CLOCKS:
        order.clear()
        timing = _step_timing.Timing(repeats=2, clock=clock)
        seconds = _step_timing.interleave(blocks, timing, device=CPU)
        assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert order == ["a", "b", "b", "a"]
    times = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}
    made = _step_timing.ratio(times, of="a", to="b")
    assert made == {"median": 1.0, "turns": [2.0, 1.0, 0.5]}


@pytest.mark.parametrize(("size", "forward"), [("B", 50.0), ("L", 166.1), ("XL", 242.4)])
def test_flops_are_the_known_ones(size: str, forward: float) -> None:
    assert Case(size=size).flops() / 1e9 == pytest.approx(forward, abs=0.06)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_command_without_a_gpu_says_so() -> None:
    with pytest.raises(RegscaleError, match=r"needs a CUDA device; found none, with torch"):
        gpu.main([])


def test_only_the_single_engine_has_a_bar() -> None:
    def case(engine: str, rate: float) -> dict[str, Any]:
        return {"settings": {"engine": engine}, "training": {"rate_over_plain": {"median": rate}}}

    assert not gpu.below_the_bar({"cases": [case("single", 0.98), case("zero3", 0.5)]})
    assert gpu.below_the_bar({"cases": [case("single", 0.96), case("zero3", 0.98)]})


def test_the_gpu_command_covers_two_sizes_eager_and_compiled_and_every_engine(
    tmp_path: Path,
) -> None:
    made = [step._parser().parse_args(command) for command in gpu.commands(tmp_path / "x.json")]
    own = [o for o in made if o.engine == "single"]
    assert {(o.size, o.compile, o.precision) for o in own} == {
        (size, compiled, "bf16") for size in ("B", "XL") for compiled in (False, True)
    }
    assert {o.engine for o in made} == set(ENGINES)
