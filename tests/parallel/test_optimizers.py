"""The rules of update besides AdamW: Muon, and AdamW with 8-bit moments."""

from __future__ import annotations

import gc
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regscale import assemble
from regscale.checkpoint import Reader, Record
from regscale.cluster import Cluster
from regscale.parallel import OptimizerConfig
from regscale.parallel._adam8 import BLOCK, PLACE, RANGE, TIME, Quantised, table
from regscale.parallel._muon import Matrices, orthogonal
from regscale.parallel._update import Updater
from regscale.training import Job
from regscale.training.loop import open_loader, update
from regscale.training.saver import Saver
from regscale.training.state import pieces, restore
from tests.conftest import MakeConfig
from tests.parallel import cases
from tests.parallel.conftest import Runs

MUON, EIGHT = "optimizer.rule=muon", "optimizer.rule=adamw8bit"
SCALES = [1.0, 1e-9, 1e-20, 1e-25, 1e-30, 1e-38]


def spread(count: int, scale: float, moment: str) -> Tensor:
    """Numbers over several magnitudes, as moments are."""
    g = torch.Generator().manual_seed(0)
    values = torch.randn(count, generator=g) * (3 * torch.randn(count, generator=g)).exp() * scale
    return values.abs() if moment == "exp_avg_sq" else values


def assert_near(made: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """After ten updates of 1e-4 under 8-bit moments that were rounded otherwise."""
    apart = torch.cat([(value - want[name]).abs().flatten() for name, value in made.items()])
    assert apart.mean() < 1e-5
    assert apart.max() < 1e-3


def names_of(job: Job) -> dict[str, set[str]]:
    return {shard.name: set(shard.optimizer) for shard in job.engine.shards() if shard.trainable}


# Muon


def test_the_iterations_bring_singular_values_near_one() -> None:
    g = torch.Generator().manual_seed(0)
    for shape in ((64, 64), (96, 32), (32, 96)):
        made = orthogonal(torch.randn(shape, generator=g).bfloat16())
        values = torch.linalg.svdvals(made.float())
        assert values.max() < 1.3
        assert values.median() > 0.6  # the smallest of a square matrix are too small to arrive


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_is_that_of_torch_to_the_bit(decay: float) -> None:
    """On whole matrices, with its rate that matches AdamW's; the others are AdamW's own."""
    g = torch.Generator().manual_seed(0)
    start = {name: torch.randn(6, 10, generator=g) for name in ("matrix", "other")}
    mine = {name: value.clone().view(-1) for name, value in start.items()}
    config = OptimizerConfig(rule="muon", weight_decay=decay, max_grad_norm=1e9)
    rule = Updater(config, mine, matrices=Matrices({"matrix": (6, 10)}))
    theirs = {name: value.requires_grad_() for name, value in start.items()}
    shared: dict[str, Any] = {"lr": 1e-4, "weight_decay": decay}
    muon = torch.optim.Muon([theirs["matrix"]], adjust_lr_fn="match_rms_adamw", **shared)
    adamw = torch.optim.AdamW([theirs["other"]], fused=True, **shared)
    for _ in range(5):
        gradients = {name: torch.randn(6, 10, generator=g) for name in start}
        for name, value in theirs.items():
            value.grad = gradients[name].clone()
        muon.step()
        adamw.step()
        rule.step({name: gradient.view(-1) for name, gradient in gradients.items()})
    for name, value in theirs.items():
        assert torch.equal(mine[name].view(6, 10), value.detach()), name


def test_muon_is_for_the_matrices_of_blocks_alone(tiny: MakeConfig) -> None:
    job = assemble.job(tiny(MUON))
    shapes = {name: p.ndim for name, p in job.engine.model.named_parameters()}
    for name, moments in names_of(job).items():
        matrix = name.startswith("blocks.") and shapes[name] == 2
        assert moments == ({"momentum_buffer"} if matrix else {"exp_avg", "exp_avg_sq"}), name


def test_zero_refuses_muon(runs: Runs) -> None:
    (told,) = runs(1, cases.refusal, "zero3", MUON)
    assert "optimizer.rule" in told
    assert "of engine zero is adamw or adamw8bit: its flat ranges cut matrices" in told
    assert "found muon. Choose adamw, or the engine fsdp2." in told


# 8-bit moments


@pytest.mark.parametrize(("moment", "scale"), product(RANGE, SCALES))
def test_what_was_rounded_once_is_rounded_to_itself(moment: str, scale: float) -> None:
    """So a checkpoint, which holds fp32, gives a resumed run the same bits."""
    held = Quantised(torch.zeros(5000), table(moment))
    assert not held.get().any()
    held.set(spread(5000, scale, moment))
    codes, scales, values = held.codes, held.scales, held.get()
    held.set(values)
    assert torch.equal(held.codes, codes)
    assert torch.equal(held.scales, scales)
    assert torch.equal(held.get(), values)


@pytest.mark.parametrize("moment", RANGE)
def test_a_code_is_within_half_a_step_and_no_second_moment_vanishes(moment: str) -> None:
    """Steps are factors of 2^(16/126) and 2^(32/255), 9.2 % and 9.1 %."""
    values = spread(5000, 1e-9, moment)
    held = Quantised(values, table(moment))
    held.set(values)
    made = held.get()
    largest = torch.nn.functional.pad(values, (0, -5000 % BLOCK)).view(-1, BLOCK).abs().amax(1)
    near = values.abs() > largest.repeat_interleave(BLOCK)[:5000] * 2.0 ** -RANGE[moment]
    assert ((made - values).abs() <= 0.046 * values.abs())[near].all()
    assert near.float().mean() > 0.7
    if moment == "exp_avg_sq":
        assert (made > 0).all()


def test_a_second_moment_decays_as_it_would_in_fp32() -> None:
    """By a thousandth at a time, less than a code: to the nearest it would never move."""
    exact = torch.linspace(0.1, 1, BLOCK)
    exact[0] = 1e3  # holds the scale of the block, and does not decay
    held, stuck = (Quantised(exact, table("exp_avg_sq")) for _ in range(2))
    for each in (held, stuck):
        each.set(exact)
    start, places = stuck.codes, torch.arange(BLOCK) * PLACE % 1
    for number in range(1000):
        exact[1:] *= 0.999
        for each, dither in ((held, (places + number * TIME) % 1), (stuck, None)):
            values = each.get()
            values[1:] *= 0.999
            each.set(values, dither)
    assert torch.equal(stuck.codes, start)
    ratio = held.get()[1:] / exact[1:]
    assert abs(ratio.mean() - 1) < 0.09  # one code
    assert ratio.min() > 0.8
    assert ratio.max() < 1.2


def test_the_first_update_is_that_of_adamw_to_the_bit(tiny: MakeConfig) -> None:
    states = []
    for rule in ("adamw", "adamw8bit"):
        job = assemble.job(tiny(f"optimizer.rule={rule}", f"name={rule}"))
        update(job, next(open_loader(job, 0)))
        states.append(cases.state_of(job))
    assert cases.same(*states)


def test_moments_take_a_byte_each_and_a_scale_for_each_block() -> None:
    count = 100 * BLOCK
    config = OptimizerConfig(rule="adamw8bit")
    rule: Any = Updater(config, {"w": torch.zeros(count)})._rule
    assert sum(held.codes.nbytes + held.scales.nbytes for held in rule._state.values()) == (
        2 * (count + 4 * 100)
    )


def test_what_is_written_into_a_lent_moment_holds() -> None:
    """Whether it is in someone's hands still, or not, when the run goes on."""
    updater = Updater(OptimizerConfig(rule="adamw8bit"), {"w": torch.zeros(300)})
    updater.moments("w")["exp_avg"].fill_(3.0)
    assert torch.equal(updater.moments("w")["exp_avg"], torch.full((300,), 3.0))
    held = updater.moments("w")
    assert updater.moments("w")["exp_avg_sq"] is held["exp_avg_sq"]
    held["exp_avg_sq"].fill_(5.0)
    updater.restore({"updates": 1, "optimizer_steps": {"w": 1.0}, "loss_scale": None})
    assert torch.equal(updater.moments("w")["exp_avg_sq"], torch.full((300,), 5.0))
    updater.step({"w": torch.ones(300)})
    after = updater.moments("w")["exp_avg"].clone()
    held["exp_avg"].fill_(9.0)  # of before the update: no longer the moment
    del held
    gc.collect()
    assert torch.equal(updater.moments("w")["exp_avg"], after)


# Both


@pytest.mark.parametrize("rule", [MUON, EIGHT])
@pytest.mark.parametrize(
    "precision", ["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.slow)]
)
def test_the_loss_falls(tiny: MakeConfig, rule: str, precision: str) -> None:
    job = assemble.job(tiny(rule, f"engine.precision={precision}"))
    feed = open_loader(job, 0)
    losses = [float(update(job, next(feed))[0][0]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("engine", "ranks"),
    [
        ("fsdp2", 3),
        pytest.param("ddp", 2, marks=pytest.mark.slow),
        pytest.param("fsdp2", 2, marks=pytest.mark.slow),
    ],
)
def test_muon_is_the_same_on_every_engine(runs: Runs, engine: str, ranks: int) -> None:
    """Gradients differ in their last bits, which the iterations, here in fp32, may enlarge 500
    times in directions that hardly count; an update is 0.2 of a rate of 1e-4. Measured 4.5e-8."""
    size = "training.batch_size=12"
    (want,) = runs(1, cases.trained, "single", MUON, size, steps=10)
    for made in runs(ranks, cases.trained, engine, MUON, size, steps=10):
        assert made["progress"] == want["progress"]
        torch.testing.assert_close(made["losses"], want["losses"], rtol=1e-6, atol=0)
        for name, value in made["state"].items():
            torch.testing.assert_close(value, want["state"][name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.distributed
def test_muon_is_the_same_in_groups_of_shards(runs: Runs) -> None:
    (want,) = runs(1, cases.trained, "single", MUON, steps=10)
    for made in runs(4, cases.trained, "fsdp2", MUON, "engine.shard_group=2", steps=10):
        for name, value in made["state"].items():
            torch.testing.assert_close(value, want["state"][name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "engine", ["ddp", "fsdp2", pytest.param("zero1", marks=pytest.mark.slow), "zero3"]
)
def test_8_bit_moments_train_alike_on_every_engine(runs: Runs, engine: str) -> None:
    """A cut moves the borders of blocks, so a moment may be another code, 9 % off, and an update
    of 1e-4 as much. Beside gates, which begin at zero, some gradients are so small that their
    moments are no more than codes' steps: there each of ten updates may be another one."""
    (want,) = runs(1, cases.trained, "single", EIGHT, steps=10)
    for made in runs(2, cases.trained, engine, EIGHT, steps=10):
        assert made["progress"] == want["progress"]
        torch.testing.assert_close(made["losses"], want["losses"], rtol=1e-4, atol=0)
        assert_near(made["state"], want["state"])


@pytest.mark.distributed
@pytest.mark.parametrize("rule", [MUON, EIGHT])
@pytest.mark.parametrize("engine", ["single", "fsdp2"])
def test_a_bad_loss_changes_neither_weights_nor_moments(runs: Runs, engine: str, rule: str) -> None:
    bad = {1: float("nan"), 3: float("inf"), 4: float("nan")}
    for made in runs(1 if engine == "single" else 2, cases.poisoned, engine, rule, bad=bad):
        assert made["applied"] == [True, False, True, False, False, True]
        assert made["unchanged"] == [not each for each in made["applied"]]
        assert made["counts"] == [{1.0}, {1.0}, {2.0}, {2.0}, {2.0}, {3.0}]


def saved(cluster: Cluster, file: str, overrides: tuple[str, ...], folder: str) -> Any:
    """Three updates, a save, three more."""
    job = cases.job_of(file, overrides)
    feed = open_loader(job, 0)
    for _ in range(3):
        update(job, next(feed))
    with Saver(Path(folder), cluster, keep_last=1, keep_every=0) as saver:
        record = Record(step=3, samples=24, config={}, progress=job.engine.progress())
        saver.save(pieces(job.engine, job.ema), record)
        saver.wait(strict=True)
    return after(job, feed)


def resumed(cluster: Cluster, file: str, overrides: tuple[str, ...], folder: str) -> Any:
    """The three updates after that save, by a run that begins with it."""
    job = cases.job_of(file, overrides)
    reader = Reader(next(p for p in Path(folder).iterdir() if p.is_dir()))
    restore(reader, job.engine, job.ema)
    job.engine.restore(reader.progress)
    return after(job, open_loader(job, 24))


def after(job: Job, feed: Any) -> Any:
    losses = [float(update(job, next(feed))[0][0]) for _ in range(3)]
    feed.close()
    return {"losses": losses, "ranges": cases.ranges(job), "state": cases.state_of(job)}


@pytest.mark.distributed
@pytest.mark.parametrize("rule", [MUON, EIGHT])
@pytest.mark.parametrize("engine", ["single", "fsdp2"])
def test_a_resumed_run_has_the_bits_of_the_undisturbed_one(
    runs: Runs, engine: str, rule: str, tmp_path: Path
) -> None:
    ranks, folder = 1 if engine == "single" else 2, str(tmp_path)
    want = runs(ranks, saved, engine, rule, folder=folder)
    made = runs(ranks, resumed, engine, rule, folder=folder)
    for a, b in zip(made, want, strict=True):
        assert a["losses"] == b["losses"]
        assert cases.same(a["ranges"], b["ranges"])


@pytest.mark.distributed
@pytest.mark.parametrize("rule", [MUON, EIGHT])
def test_a_run_goes_on_at_another_number_of_ranks(runs: Runs, rule: str, tmp_path: Path) -> None:
    """Muon's momentum is flat ranges, as AdamW's moments are; codes are made anew."""
    want = runs(2, saved, "fsdp2", rule, folder=str(tmp_path))[0]["state"]
    (made,) = runs(1, resumed, "single", rule, folder=str(tmp_path))
    if rule == EIGHT:
        assert_near(made["state"], want)
    else:
        torch.testing.assert_close(made["state"], want, rtol=0, atol=1e-6)


def test_a_run_may_change_between_fp32_and_8_bit_moments(
    tiny: MakeConfig, runs: Runs, tmp_path: Path
) -> None:
    (want,) = runs(1, saved, "single", folder=str(tmp_path))
    (made,) = runs(1, resumed, "single", EIGHT, folder=str(tmp_path))
    torch.testing.assert_close(made["losses"], want["losses"], rtol=1e-3, atol=0)
