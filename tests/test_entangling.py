"""Targets with times of their own through a whole run: parameters, training, given tokens."""

import json

import pytest
import torch
from torch import Tensor

from regscale import assemble
from regscale.encoding import Normalisation
from regscale.errors import RegscaleError
from regscale.layers.initial import materialise
from regscale.sampling import GuidanceConfig
from regscale.training import train
from regscale.types import Labels
from tests.conftest import MakeConfig

CPU = torch.device("cpu")
LEAD = ["entangle.vit.schedule.kind=lead", "entangle.vit.schedule.lead=0.3"]
OWN = ["entangle.vit.schedule.kind=independent"]


def names(config: assemble.RunConfig) -> set[str]:
    return set(assemble.pieces(config).model.state_dict())


def test_only_a_target_with_times_of_its_own_has_parameters_for_them(tiny: MakeConfig) -> None:
    added = names(tiny(*LEAD)) - names(tiny())
    assert added == {f"token_time.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert names(tiny()) - names(tiny(*LEAD)) == set()


def velocity(overrides: list[str], tiny: MakeConfig, token_time: float) -> tuple[Tensor, Tensor]:
    """Of one image and token, by a model at its start but for output layers, which are zero."""
    model = assemble.pieces(tiny(*overrides)).model
    materialise(model, seed=0, device=CPU)
    for linear in (model.final_layer.linear, model.final_layer.linear_cls):
        torch.nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 1, 8, 8, generator=g)
    tokens = torch.randn(2, 1, 48, generator=g)
    times = torch.full((2,), 0.6), (torch.full((2,), token_time),)
    with torch.no_grad():
        made = model(latents, (tokens,), *times, Labels(torch.tensor([1, 2])))
    return made.latents, made.tokens[0]


def test_at_the_start_the_time_of_a_token_changes_no_bit(tiny: MakeConfig) -> None:
    plain = velocity([], tiny, 0.6)
    for a, b in zip(plain, velocity(OWN, tiny, 0.1), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "overrides", [LEAD, OWN, ["entangle.vit.schedule={kind: shift, shift: 2}"]]
)
def test_a_run_learns_the_time_of_its_tokens_and_samples(
    tiny: MakeConfig, overrides: list[str]
) -> None:
    job = assemble.job(tiny(*overrides, "training.batch_size=16"))
    assert train(job).step == 6
    learned = job.engine.model.token_time.mlp[2].weight.detach()
    assert float(learned.abs().max()) > 0
    loaded = assemble.trained(job.folder, device="cpu")
    state = loaded.sampler.state(Labels(torch.tensor([3])), [0], GuidanceConfig(scale=2.0))
    assert all(torch.isfinite(leaf).all() for leaf in state.leaves)


def test_given_tokens_stay_and_the_image_follows_them(tiny: MakeConfig) -> None:
    job = assemble.job(tiny(*OWN))
    train(job)
    loaded = assemble.trained(job.folder, device="cpu")
    images = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    tokens = loaded.towers.tokens(images, [True])
    labels, seeds, guidance = Labels(torch.tensor([3, 4])), [5, 6], GuidanceConfig()
    state = loaded.sampler.state(labels, seeds, guidance, tokens)
    assert torch.equal(state.tokens[0], tokens[0].double())
    alone = loaded.sampler.state(Labels(labels.labels[1:]), seeds[1:], guidance, [tokens[0][1:]])
    torch.testing.assert_close(alone.latents, state.latents[1:], rtol=0, atol=1e-5)
    free = loaded.sampler.state(labels, seeds, guidance)
    assert not torch.equal(free.tokens[0], state.tokens[0])


TWO = [
    *("targets.b.kind=digits_vit", "entangle.b={slot: 1, weight: 0.1}"),
    *("entangle.b.schedule.kind=independent", "entangle.b.normalisation=unit"),
]


def test_two_targets_are_trained_and_one_of_them_may_be_given(tiny: MakeConfig) -> None:
    job = assemble.job(tiny(*TWO))
    train(job)
    lines = (job.folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["tokens_vit"] > 0
    assert last["tokens_b"] > 0
    assert last["tokens_b"] != last["tokens_vit"]
    loaded = assemble.trained(job.folder, device="cpu")
    images = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    given = loaded.towers.tokens(images, [False, True])
    assert given[0] is None
    assert given[1] is not None
    raw = loaded.towers.targets["b"](images).tokens
    assert torch.equal(given[1], Normalisation("unit")(raw))
    labels, seeds, guidance = Labels(torch.tensor([3, 4])), [5, 6], GuidanceConfig(scale=2.0)
    state, free = (loaded.sampler.state(labels, seeds, guidance, g) for g in (given, ()))
    assert torch.equal(state.tokens[1], given[1].double())
    for made, other in zip(state.leaves, free.leaves, strict=True):
        assert torch.isfinite(made).all()
        assert not torch.equal(made, other)


def test_guidance_and_the_place_of_statistics_may_change_in_a_run_but_not_its_times(
    tiny: MakeConfig,
) -> None:
    train(assemble.job(tiny("training.num_steps=4")))
    more = tiny("training.num_steps=5", "entangle.vit.guidance_scale=2.0")
    assert train(assemble.job(more)).step == 5
    with pytest.raises(RegscaleError, match=r"was made with another entangle\.vit\."):
        train(assemble.job(tiny(*OWN)))


def test_a_unit_vector_of_768_numbers_gets_a_deviation_of_1() -> None:
    """Not the 0.036 that it has; the length of a token is lost."""
    g = torch.Generator().manual_seed(0)
    clip = torch.nn.functional.normalize(torch.randn(100, 1, 768, generator=g), dim=-1)
    assert abs(float(clip.std()) - 768**-0.5) < 1e-3
    made = Normalisation("unit")(clip)
    torch.testing.assert_close(made.square().mean(-1), torch.ones(100, 1))
    torch.testing.assert_close(Normalisation("unit")(7 * clip), made)
    assert Normalisation()(clip) is clip
