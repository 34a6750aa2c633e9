"""The single engine: its rule of update, precision, shards and swapped weights."""

import pytest
import torch

from regscale import assemble
from regscale.cluster import Cluster
from regscale.config import Invalid
from regscale.layers.linear import Linear
from regscale.parallel import OptimizerConfig, _optimizer, single
from regscale.parallel._optimizer import learning_rate
from regscale.parallel._scaler import GROWTH_INTERVAL, LossScale
from regscale.training.ema import Ema
from regscale.training.loop import open_loader, update
from tests.conftest import MakeConfig


def test_rates_warm_up_and_decay() -> None:
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=4, schedule="cosine", decay_steps=14, final_ratio=0.1
    )
    rates = [learning_rate(config, step) for step in range(16)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.55)  # half way between 1 and 0.1
    assert rates[14] == rates[15] == pytest.approx(0.1)
    assert learning_rate(OptimizerConfig(), 10**6) == 1e-4


def test_the_fused_update_is_clipping_and_adamw(tiny: MakeConfig) -> None:
    """Against torch's unfused AdamW and a norm summed in float64, some steps beyond the clip."""
    config = tiny("optimizer.max_grad_norm=0.01", "optimizer.weight_decay=0.1")
    job = assemble.job(config)
    model = job.engine.model
    reference = [p.detach().clone().requires_grad_() for p in model.parameters()]
    rule = torch.optim.AdamW(reference, lr=1e-3, weight_decay=0.1, foreach=False)
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        for p, r in zip(model.parameters(), reference, strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            r.grad = p.grad.clone()
        norm = torch.cat([r.grad.double().flatten() for r in reference]).norm().float()
        torch.nn.utils.clip_grads_with_norm_(reference, 0.01, norm)
        rule.step()
        result = job.engine.step()
        torch.testing.assert_close(result.grad_norm, norm)
    for p, r in zip(model.parameters(), reference, strict=True):
        torch.testing.assert_close(p, r, rtol=0, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_near_fp32_and_its_masters_stay_fp32(
    tiny: MakeConfig, precision: str
) -> None:
    losses = []
    for kind in ("fp32", precision):
        job = assemble.job(tiny(f"engine.precision={kind}", f"name={kind}"))
        loader = open_loader(job, 0)
        losses.append(torch.stack([update(job, next(loader))[0][0] for _ in range(5)]))
        assert all(p.dtype == torch.float32 for p in job.engine.model.parameters())
    # five steps; bf16 keeps 8 bits of each factor, so a relative error near 1/256 at most
    torch.testing.assert_close(losses[0], losses[1], rtol=4e-3, atol=0)
    assert not torch.equal(*losses)


def test_times_embedding_and_final_layer_compute_in_fp32(tiny: MakeConfig) -> None:
    model = assemble.job(tiny("engine.precision=bf16")).engine.model
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.register_forward_hook(lambda m, i, o, n=name: seen.update({n: o.dtype}))
    model(
        torch.randn(1, 1, 8, 8), (torch.randn(1, 1, 48),), torch.rand(1), (torch.rand(1),),
        type("L", (), {"labels": torch.tensor([1])})(),
    )  # fmt: skip
    for name, dtype in seen.items():
        low = name.startswith(("blocks.", "projectors."))
        assert dtype == (torch.bfloat16 if low else torch.float32), name


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_a_while() -> None:
    scale = LossScale(torch.device("cpu"))
    start = float(scale.value)
    scale.update(torch.tensor(False))
    assert float(scale.value) == start / 2
    for _ in range(GROWTH_INTERVAL - 1):
        scale.update(torch.tensor(True))
    assert float(scale.value) == start / 2
    again = LossScale(torch.device("cpu"))
    again.restore(scale.state())
    for each in (scale, again):
        each.update(torch.tensor(True))
        assert float(each.value) == start


def test_shards_are_live_and_whole(tiny: MakeConfig) -> None:
    engine = assemble.job(tiny()).engine
    shards = {shard.name: shard for shard in engine.shards()}
    state = engine.model.state_dict()
    assert shards.keys() == state.keys()
    for name, shard in shards.items():
        assert (shard.start, shard.stop, shard.shape) == (0, state[name].numel(), state[name].shape)
    assert not shards["pos_embed"].trainable
    assert shards["pos_embed"].optimizer == {}
    shards["wg_norm.bias"].master.fill_(3.0)
    assert float(engine.model.wg_norm.bias.detach().min()) == 3.0


def test_weights_are_swapped_for_a_block_and_come_back(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    engine = job.engine
    before = {name: tensor.clone() for name, tensor in engine.full_state()}
    values = [(s.name, torch.full_like(s.master, 2.0)) for s in engine.shards()]
    with pytest.raises(RuntimeError, match="inside"), engine.weights(values):
        assert all(float(p.detach().min()) == 2 for p in engine.model.parameters())
        raise RuntimeError("inside")
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.full_state())


def test_the_average_is_the_formula_and_leaves_frozen_weights(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    ema = Ema(job.engine.shards(), [0.5, 0.9])
    start = job.engine.model.wg_norm.weight.detach().clone()
    with torch.no_grad():
        for value in (2.0, 4.0):
            job.engine.model.wg_norm.weight.fill_(value)
            ema.update()
    for decay in (0.5, 0.9):
        expected = start * decay**2 + 2 * (1 - decay) * decay + 4 * (1 - decay)
        torch.testing.assert_close(ema.averages[decay]["wg_norm.weight"], expected)
    job.engine.model.stop_aligning(0)
    ema.follow(job.engine.shards())
    frozen = ema.averages[0.5]["projectors.0.0.weight"].clone()
    with torch.no_grad():
        job.engine.model.projectors[0][0].weight.fill_(7.0)
    ema.update()
    assert torch.equal(ema.averages[0.5]["projectors.0.0.weight"], frozen)


def test_several_processes_are_refused(tiny: MakeConfig) -> None:
    parts = assemble.pieces(tiny())
    with pytest.raises(Invalid, match="is for one process; found 2 processes"):
        single.build(
            single.Config(),
            parts.model,
            optimizer=OptimizerConfig(),
            seed=0,
            cluster=Cluster(0, 2, 0, torch.device("cpu")),
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_that_cannot_scale_inside_does_the_same_outside(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """As on Metal, whose fused update knows neither scale nor skip."""
    states = []
    for inside in (True, False):
        job = assemble.job(tiny(f"engine.precision={precision}", "optimizer.max_grad_norm=0.1"))
        monkeypatch.setattr(_optimizer, "scales_inside", lambda update, inside=inside: inside)
        loader = open_loader(job, 0)
        for step in range(4):
            if step == 2:
                job.engine.model.wg_norm.bias.grad = torch.full((32,), float("nan"))
            update(job, next(loader))
        states.append({name: tensor.clone() for name, tensor in job.engine.full_state()})
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=1e-6)
