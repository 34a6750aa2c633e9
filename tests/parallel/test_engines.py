"""One list of facts over all engines and precisions, on gloo processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parallel import cases
from tests.parallel.conftest import ENGINES, Runs

pytestmark = pytest.mark.distributed
SEVERAL = [name for name in ENGINES if name != "single"]
SHARDED = ["fsdp2", "zero3"]
STEPS = 30
NAN, INFINITY = float("nan"), float("inf")


def rows(fast: str, names: Iterable[str] = ENGINES) -> list[Any]:
    """The engines, those not in `fast` for the slow suite."""
    slow = pytest.mark.slow
    return [name if name in fast.split() else pytest.param(name, marks=slow) for name in names]


def ranks_of(engine: str) -> int:
    return 1 if engine == "single" else 2


def relative(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, float]:
    """The largest difference of weights, and that of the key third of qkv biases. That third has
    no true gradient (docs/numerics.md): Adam makes steps of rounding there, so it is known only
    to within a few learning rates."""
    assert a.keys() == b.keys()
    plain, keys = 0.0, 0.0
    for name, value in a.items():
        parts = [value - b[name]]
        if name.endswith("attn.qkv.bias"):
            query, key, values = parts[0].chunk(3)
            parts, keys = [query, values], max(keys, float(key.abs().max()))
        plain = max(plain, *[float(part.abs().max()) for part in parts])
    return plain, keys


def assert_same_training(made: dict[str, Any], want: dict[str, Any]) -> None:
    """fp32: sums in another order, in the last bits of losses and norms."""
    assert made["start"] == want["start"]
    assert relative(made["losses"], want["losses"]) < 1e-6
    assert relative(made["norms"], want["norms"]) < 1e-6
    for kind in ("state", "ema"):
        plain, keys = distance(made[kind], want[kind])
        assert plain < 1e-5
        assert keys < 1e-5


@pytest.mark.parametrize("engine", SEVERAL)
def test_every_engine_trains_as_single_does(runs: Runs, engine: str) -> None:
    (want,) = runs(1, cases.trained, "single", steps=STEPS)
    for made in runs(2, cases.trained, engine, steps=STEPS):
        assert_same_training(made, want)


@pytest.mark.parametrize(
    ("precision", "qk_norm"),
    [
        ("bf16", True),
        pytest.param("bf16", False, marks=pytest.mark.slow),
        pytest.param("fp32", True, marks=pytest.mark.slow),
        pytest.param("fp32", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("engine", rows("fsdp2 zero3", SEVERAL))
def test_at_one_rank_every_engine_gives_the_bits_of_single(
    runs: Runs, engine: str, precision: str, qk_norm: bool
) -> None:
    options = (f"engine.precision={precision}", f"model.qk_norm={str(qk_norm).lower()}")
    (want,) = runs(1, cases.trained, "single", *options, steps=5)
    (made,) = runs(1, cases.trained, engine, *options, steps=5)
    assert made["losses"] == want["losses"]
    assert made["norms"] == want["norms"]
    for kind in ("first", "state", "ema"):
        assert cases.same(made[kind], want[kind]), kind
    assert made["progress"] == want["progress"]


def test_bf16_is_the_same_policy_under_fsdp2_and_zero(runs: Runs) -> None:
    """Step 1 to the bit; later no further apart than one engine is from itself when it meets the
    samples of each batch in another order."""
    bf16 = "engine.precision=bf16"
    a, b, c = (
        runs(2, cases.trained, engine, bf16, steps=STEPS, **order)[0]
        for engine, order in (("fsdp2", {}), ("zero3", {}), ("fsdp2", {"order": True}))
    )
    assert a["losses"][0] == b["losses"][0]
    assert a["norms"][0] == b["norms"][0]
    assert cases.same(a["first"], b["first"])
    between = relative(a["losses"], b["losses"])
    within = relative(a["losses"], c["losses"])
    assert 0 < within < 1e-2
    assert between <= 2 * within
    assert distance(a["state"], b["state"])[0] <= 2 * distance(a["state"], c["state"])[0]


@pytest.mark.parametrize("engine", rows("zero1", ["ddp", "zero1", "zero2"]))
def test_bf16_of_the_other_engines_accumulates_in_fp32(runs: Runs, engine: str) -> None:
    """ZeRO-1 with bf16 is a class of its own in DeepSpeed's bf16 mode, which is not used here."""
    bf16 = "engine.precision=bf16"
    want = runs(2, cases.trained, "fsdp2", bf16, steps=STEPS)[0]
    order = runs(2, cases.trained, "fsdp2", bf16, steps=STEPS, order=True)[0]
    made = runs(2, cases.trained, engine, bf16, steps=STEPS)[0]
    assert made["start"] == want["start"]
    assert made["losses"][0] == want["losses"][0]
    assert relative(made["losses"], want["losses"]) <= 2 * relative(order["losses"], want["losses"])


@pytest.mark.parametrize("engine", rows("ddp zero2", [n for n in ENGINES if n != "fsdp2"]))
def test_an_overflow_in_fp16_halves_the_scale_on_all_ranks(runs: Runs, engine: str) -> None:
    made = runs(ranks_of(engine), cases.poisoned, engine, "engine.precision=fp16", bad={1: 1e30})
    for rank in made:
        assert rank["applied"] == [True, False, True, True, True, True]
        assert rank["unchanged"][1]
        assert rank["scales"] == [2.0**16] + [2.0**15] * 5


@pytest.mark.parametrize(
    ("ranks", "engine", "overrides", "message"),
    [
        (2, "single", (), "'single' is for one process; found 2 processes"),
        (1, "fsdp2", ("engine.precision=fp16",), "of fsdp2 is fp32 or bf16; found fp16"),
        (2, "fsdp2", ("engine.shard_group=3",), "divides the number of processes; found 3 of 2"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    runs: Runs, ranks: int, engine: str, overrides: tuple[str, ...], message: str
) -> None:
    for made in runs(ranks, cases.refusal, engine, *overrides):
        assert message in made


@pytest.mark.parametrize("size", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", rows("ddp fsdp2 zero2 zero3"))
def test_micro_batches_add_up_to_the_batch(runs: Runs, engine: str, size: int) -> None:
    ranks = ranks_of(engine)
    want = runs(1, cases.trained, "single", steps=5)[0]
    made = runs(ranks, cases.trained, engine, f"training.micro_batch={size}", steps=5)[0]
    assert_same_training(made, want)


@pytest.mark.slow
def test_groups_of_shards_train_as_one_group_does(runs: Runs) -> None:
    """HSDP: four ranks in two groups, each with a copy."""
    (want,) = runs(1, cases.trained, "single", steps=STEPS)
    for overrides in ((), ("engine.shard_group=2",)):
        for made in runs(4, cases.trained, "fsdp2", *overrides, steps=STEPS):
            assert_same_training(made, want)


@pytest.mark.slow
def test_weights_that_stay_gathered_until_the_backward_are_the_same_bits(runs: Runs) -> None:
    for a, b in zip(
        runs(2, cases.trained, "fsdp2", steps=5),
        runs(2, cases.trained, "fsdp2", "engine.reshard=false", steps=5),
        strict=True,
    ):
        assert a["losses"] == b["losses"]
        assert cases.same(a["state"], b["state"])
        assert cases.same(a["ema"], b["ema"])


@pytest.mark.parametrize(
    "recompute",
    [
        ("engine.recompute=selective",),
        pytest.param(("engine.recompute=full",), marks=pytest.mark.slow),
        pytest.param(("engine.recompute=full", "engine.recompute_every=2"), marks=pytest.mark.slow),
    ],
    ids=["selective", "full", "every_2"],
)
@pytest.mark.parametrize("engine", rows("zero3"))
def test_recomputed_activations_are_the_same_bits(
    runs: Runs, engine: str, recompute: tuple[str, ...]
) -> None:
    ranks, bf16 = ranks_of(engine), "engine.precision=bf16"
    want = runs(ranks, cases.trained, engine, bf16, steps=3)
    made = runs(ranks, cases.trained, engine, bf16, *recompute, steps=3)
    for a, b in zip(made, want, strict=True):
        assert a["losses"] == b["losses"]
        assert a["norms"] == b["norms"]
        assert cases.same(a["state"], b["state"])


@pytest.mark.parametrize("engine", ENGINES)
def test_alignment_stops_and_the_projector_keeps_its_bits(runs: Runs, engine: str) -> None:
    ranks, stop = ranks_of(engine), "align.vit.stop_step=2"
    (want,) = runs(1, cases.stopped, "single", stop)
    (never,) = runs(1, cases.stopped, "single")
    for made in runs(ranks, cases.stopped, engine, stop):
        assert made["held"] == 6 * 5  # weight, two moments, two averages of three layers
        assert made["kept"]
        assert made["left"] == []  # everything else was trained on
        assert relative(made["losses"], want["losses"]) < 1e-6
        assert distance(made["state"], want["state"])[0] < 1e-5
        assert made["losses"][1] == pytest.approx(never["losses"][1], rel=1e-6)
        assert made["losses"][2] != pytest.approx(never["losses"][2], rel=1e-3)


@pytest.mark.parametrize("value", [NAN, pytest.param(INFINITY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_loss_on_one_rank_is_skipped_by_all(runs: Runs, engine: str, value: float) -> None:
    for made in runs(ranks_of(engine), cases.poisoned, engine, bad={1: value, 3: value, 4: value}):
        assert made["applied"] == [True, False, True, False, False, True]
        assert made["unchanged"] == [not each for each in made["applied"]]
        assert made["counts"] == [{1.0}, {1.0}, {2.0}, {2.0}, {2.0}, {3.0}]
        assert made["finite"]  # averages included


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_that_takes_no_part_keeps_its_bits(runs: Runs, engine: str) -> None:
    """No gradient is none of zeros: under weight decay those would move it."""
    ranks = runs(ranks_of(engine), cases.idle, engine, "optimizer.weight_decay=0.1")
    kept = [(name, each) for made in ranks for name, each in made.items()]
    assert {name for name, each in kept if each} == {n for n, _ in kept if "idle." in n}
    assert len({name for name, each in kept if each}) == 4


@pytest.mark.parametrize("engine", rows("fsdp2 zero3"))
def test_samples_on_the_way_are_those_of_single_and_disturb_nothing(
    runs: Runs, engine: str
) -> None:
    (want,) = runs(1, cases.drawn, "single")
    for made in runs(ranks_of(engine), cases.drawn, engine):
        assert made["undisturbed"]
        torch.testing.assert_close(made["sample"], want["sample"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", SHARDED)
def test_a_rank_holds_its_part_and_the_padding(runs: Runs, engine: str, ranks: int) -> None:
    for made in runs(ranks, cases.memory, engine):
        shapes = made["shapes"].values()
        whole = 4 * sum(torch.Size(shape).numel() for shape in shapes)
        share = 4 * sum(padded_share(engine, torch.Size(shape), ranks) for shape in shapes)
        limit = 1.05 * whole / ranks + (share - whole / ranks)
        assert made["weights"] <= limit  # masters and weights together: one storage
        assert made["gradients"] <= limit
        assert made["moments"] <= 2 * limit
        assert all(size <= limit for size in made["averages"].values())


def padded_share(engine: str, shape: torch.Size, ranks: int) -> int:
    """Elements of a tensor on a rank: FSDP2 cuts rows, ZeRO-3 the flat tensor."""
    if engine == "fsdp2":
        return -(-shape[0] // ranks) * shape[1:].numel()
    return -(-shape.numel() // ranks)


@pytest.mark.parametrize("engine", SHARDED)
def test_blocks_are_gathered_in_bf16_and_reduced_in_fp32(runs: Runs, engine: str) -> None:
    for made in runs(2, cases.gathered, engine, "engine.precision=bf16"):
        kinds = {(kind.split("_base")[0].replace("_", ""), dtype) for kind, dtype in made["sent"]}
        assert ("allgather", "torch.bfloat16") in kinds
        reduced = {dtype for kind, dtype in kinds if kind.startswith(("reduce", "allreduce"))}
        assert reduced <= {"torch.float32", "torch.float64"}
        for name, rounded in made["rounded"].items():
            low = name.startswith(("blocks.", "projectors."))
            assert rounded == low, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "recompute"),
    [*[(name, "none") for name in ENGINES], *[(name, "selective") for name in SHARDED]],
)
def test_compiled_blocks_train_as_eager_ones(runs: Runs, engine: str, recompute: str) -> None:
    """Other kernels, so other last bits. One block, since compiling takes long."""
    small, ranks = "model.depth=1", ranks_of(engine)
    want = runs(ranks, cases.trained, engine, small, steps=4)
    compiled = ("engine.compile=true", f"engine.recompute={recompute}")
    made = runs(ranks, cases.trained, engine, small, *compiled, steps=4)
    for a, b in zip(made, want, strict=True):
        assert relative(a["losses"], b["losses"]) < 1e-5
        assert relative(a["norms"], b["norms"]) < 1e-5


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_engine_leaves_nothing_behind_in_its_process(runs: Runs, ranks: int) -> None:
    """DeepSpeed would replace torch's linear layer for good."""
    options = ("engine.precision=bf16", "engine.deterministic=true")
    others = [(*ENGINES[name], *options) for name in ("zero3", "fsdp2")]
    for made in runs(ranks, cases.rebuilt, "single" if ranks == 1 else "ddp", others=others):
        assert all(made.values()), made
