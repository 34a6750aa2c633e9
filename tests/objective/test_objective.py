"""The objective beyond the recorded numbers: times, draws, weights, dropped conditions."""

from typing import Any

import pytest
import torch

from regscale import path as diffusion_path
from regscale.config import Invalid
from regscale.data import NoiseShapes, draw_noise
from regscale.objective import DrawConfig, Weights, draw, losses, total
from regscale.objective.draw import training_times
from regscale.objective.losses import alignment
from regscale.schedule import Config as ScheduleConfig
from regscale.schedule import Schedule
from regscale.types import Entangled, Example, Features, Labels, Losses, Noise, Prediction

SHAPES = NoiseShapes(latents=(4, 4, 4), tokens=((1, 8), (2, 6)))
LINEAR = diffusion_path.build("linear")


def same(noise: Noise) -> Schedule:
    return Schedule((ScheduleConfig(),) * len(noise.tokens))


def test_draws_are_the_same_bits_for_any_split_of_a_batch() -> None:
    whole = draw_noise(list(range(10, 26)), SHAPES, seed=3)
    parts = [draw_noise(list(c), SHAPES, seed=3) for c in (range(10, 13), range(13, 26))]
    for name in ("times", "keep", "posterior", "latents"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(getattr(whole, name), joined), name
    for i in range(2):
        assert torch.equal(whole.tokens[i], torch.cat([part.tokens[i] for part in parts]))


def test_image_token_and_posterior_noise_are_independent() -> None:
    noise = draw_noise(list(range(64)), SHAPES, seed=0)
    a, b = noise.latents.flatten(), noise.posterior.flatten()
    assert abs(float((a * b).mean())) < 4 / a.numel() ** 0.5


@pytest.mark.parametrize(
    ("config", "median"),
    [
        (DrawConfig(), 0.5),
        (DrawConfig(distribution="logit_normal"), 0.5),
        (DrawConfig(distribution="logit_normal", mean=0.5, std=0.7), 0.6225),
        (DrawConfig(distribution="lognormal", mean=-1.2, std=1.2), 0.2315),
    ],
)
def test_times_have_their_distribution(config: DrawConfig, median: float) -> None:
    u = (torch.arange(100_000) + 0.5) / 100_000
    t = training_times(u, config, LINEAR)
    assert t.dtype == torch.float32
    assert float(t.min()) >= 0
    assert float(t.max()) <= 1
    assert abs(float(t.median()) - median) < 1e-3  # sigmoid(mean), or 1/2
    if config.distribution != "uniform":
        z = torch.logit(t.double())
        assert abs(float(z.mean()) - config.mean) < 1e-3
        assert abs(float(z.std()) - config.std) < 2e-3


def test_extreme_uniform_numbers_give_finite_times() -> None:
    t = training_times(
        torch.tensor([0.0, 1 - 2**-24]), DrawConfig(distribution="logit_normal"), LINEAR
    )
    assert t.isfinite().all()
    assert 0 <= float(t[0]) < float(t[1]) <= 1


def test_a_condition_is_dropped_in_the_share_of_the_dropout() -> None:
    noise = draw_noise(list(range(20_000)), NoiseShapes(latents=(1, 1, 1), tokens=()), seed=0)
    kept = (
        draw(noise, DrawConfig(), dropout=0.1, path=LINEAR, schedule=same(noise))
        .keep.float()
        .mean()
    )
    assert abs(float(kept) - 0.9) < 4 * (0.09 / 20_000) ** 0.5
    assert bool(
        draw(noise, DrawConfig(), dropout=0.0, path=LINEAR, schedule=same(noise)).keep.all()
    )


def test_a_dropped_condition_reaches_the_model_as_null() -> None:
    noise = draw_noise(list(range(32)), SHAPES, seed=0)
    chance = draw(noise, DrawConfig(), dropout=0.5, path=LINEAR, schedule=same(noise))
    example = Example(
        Entangled(noise.latents, noise.tokens), (), Labels(torch.arange(32, dtype=torch.int64))
    )
    seen = {}

    def model(latents, tokens, time, token_times, condition):  # type: ignore[no-untyped-def]
        seen["labels"] = condition.labels
        return Prediction(latents, tokens)

    losses(model, example, chance, null=Labels(torch.full((32,), 99)), path=LINEAR)
    expected = torch.where(chance.keep, torch.arange(32), 99)
    assert torch.equal(seen["labels"], expected)
    assert 0 < int((~chance.keep).sum()) < 32


def test_the_exact_velocity_has_no_loss() -> None:
    noise = draw_noise(list(range(8)), SHAPES, seed=0)
    chance = draw(noise, DrawConfig(), dropout=0.0, path=LINEAR, schedule=same(noise))
    clean = Entangled(noise.posterior, tuple(2 * t for t in noise.tokens))
    truth = LINEAR.velocity(clean, chance.noise, chance.times)
    made = losses(
        lambda *_: Prediction(truth.latents, truth.tokens),
        Example(clean, (), Labels(torch.zeros(8, dtype=torch.int64))),
        chance,
        null=Labels(torch.zeros(8, dtype=torch.int64)),
        path=LINEAR,
    )
    assert float(made.denoising.max()) == 0
    assert [float(t.max()) for t in made.tokens] == [0, 0]


def test_alignment_is_minus_one_for_equal_directions_and_ignores_length() -> None:
    features = Features(torch.randn(3, 1, 5), torch.randn(3, 4, 5))
    both = torch.cat([features.tokens, features.patches], dim=1)  # type: ignore[list-item]
    assert torch.allclose(alignment(7 * both, features), -torch.ones(3))
    assert torch.allclose(alignment(-features.patches, features), torch.ones(3))  # type: ignore[operator]
    tokens_only = Features(features.tokens, None)
    assert torch.allclose(alignment(features.tokens, tokens_only), -torch.ones(3))


def test_half_precision_features_are_normalised_in_fp32() -> None:
    """The square of 300 overflows fp16: the NaN that the published code's users met."""
    features = Features(torch.full((1, 1, 768), 300.0, dtype=torch.float16), None)
    projected = torch.full((1, 1, 768), 300.0, dtype=torch.float16)
    assert torch.allclose(alignment(projected, features), -torch.ones(1))


def test_the_total_weighs_each_loss_and_leaves_out_what_stopped() -> None:
    parts = Losses(
        torch.tensor([1.0, 3.0]), (torch.tensor([2.0, 4.0]),), (torch.tensor([-0.5, 0]),)
    )
    weights = Weights((0.03,), (0.5,))
    assert float(total(parts, weights)) == pytest.approx(2 + 0.03 * 3 - 0.5 * 0.25)
    stopped = parts._replace(alignment=(None,))
    assert float(total(stopped, weights)) == pytest.approx(2 + 0.03 * 3)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "lognormal"])
def test_a_shift_of_the_image_s_size_moves_all_times_towards_noise(distribution: str) -> None:
    """SD3, eq. 23: odds t / (1 - t) grow by the shift; 0 and 1 stay.
    1 - t is small next to 1, so fp32 holds it to 1e-3."""
    u = (torch.arange(1000) + 0.5) / 1000
    plain, moved = (
        training_times(u, DrawConfig(distribution=distribution, shift=s), LINEAR).double()  # type: ignore[arg-type]
        for s in (1.0, 6.93)
    )
    torch.testing.assert_close(moved / (1 - moved), 6.93 * plain / (1 - plain), rtol=2e-3, atol=0)
    ends = training_times(torch.tensor([0.0, 1.0]), DrawConfig(shift=0.3), LINEAR)
    assert ends.tolist() == [0, 1]


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_times_of_larger_latents_are_shifted_by_the_root_of_their_places(distribution: Any) -> None:
    """SD3, eq. 23: with m places for the n of `shift_places`, by sqrt(m / n) over the shift."""
    config = DrawConfig(distribution=distribution, shift=1.5, shift_places=16)
    for height, width, shift in ((4, 4, 1.5), (8, 8, 3.0), (2, 32, 3.0), (2, 2, 0.75)):
        shapes = NoiseShapes(latents=(1, height, width), tokens=())
        noise = draw_noise(list(range(100)), shapes, seed=0)
        found, want = (
            draw(noise, each, dropout=0.1, path=LINEAR, schedule=same(noise)).times.image
            for each in (config, DrawConfig(distribution=distribution, shift=shift))
        )
        assert torch.equal(found, want)


def test_a_number_of_places_is_positive() -> None:
    with pytest.raises(Invalid, match="shift_places: is positive; found 0"):
        DrawConfig(shift_places=0)


LEADS = Schedule((ScheduleConfig(kind="lead", lead=0.3), ScheduleConfig()))
MIXED = Schedule((ScheduleConfig(kind="shift", shift=0.5), ScheduleConfig(kind="independent")))


def test_each_leaf_is_noised_at_its_own_time_and_its_loss_is_of_that_time() -> None:
    """The exact velocity has no loss, and the model is told each leaf's own time."""
    shapes = NoiseShapes(latents=(4, 4, 4), tokens=SHAPES.tokens, own_times=(1,))
    noise = draw_noise(list(range(8)), shapes, seed=0)
    chance = draw(noise, DrawConfig(), dropout=0.0, path=LINEAR, schedule=MIXED)
    clean = Entangled(noise.posterior, tuple(2 * t for t in noise.tokens))
    labels, seen = Labels(torch.zeros(8, dtype=torch.int64)), {}

    def model(latents, tokens, time, token_times, condition):  # type: ignore[no-untyped-def]
        seen["times"] = token_times
        noisy = Entangled(latents, tokens)
        for x, data, z, t in zip(
            noisy.leaves, clean.leaves, chance.noise.leaves, (time, *token_times), strict=True
        ):
            t = t.reshape(-1, *[1] * (x.ndim - 1))
            torch.testing.assert_close(x, (1 - t) * data + t * z)
        velocity = LINEAR.velocity(clean, chance.noise, chance.times)
        return Prediction(velocity.latents, velocity.tokens)

    made = losses(model, Example(clean, (), labels), chance, null=labels, path=LINEAR)
    assert [float(x.max()) for x in (made.denoising, *made.tokens)] == [0, 0, 0]
    odds = [t / (1 - t) for t in (chance.times.image, *seen["times"])]
    torch.testing.assert_close(odds[1], 0.5 * odds[0])
    assert torch.equal(seen["times"][1], noise.token_times[0])


def test_own_times_are_drawn_for_targets_that_have_them_and_change_nothing_else() -> None:
    plain = draw_noise(list(range(8)), SHAPES, seed=0)
    shapes = NoiseShapes(latents=SHAPES.latents, tokens=SHAPES.tokens, own_times=(0, 1))
    more = draw_noise(list(range(8)), shapes, seed=0)
    assert plain.token_times == ()
    for a, b in zip(plain[:4], more[:4], strict=True):
        assert torch.equal(a, b)
    drawn = [more.times, *more.token_times]
    assert len({tuple(t.tolist()) for t in drawn}) == 3
    assert torch.equal(more.token_times[1][3:5], draw_noise([3, 4], shapes, seed=0).token_times[1])


def test_what_stands_still_has_no_loss() -> None:
    """With a lead of 0.3, tau runs from 1.3 to 0: the image waits above 1, the first target is done
    below 0.3, and each moves for 1 of 1.3."""
    shapes = NoiseShapes(latents=(1, 1, 1), tokens=((1, 2), (1, 3)))
    noise = draw_noise(list(range(4000)), shapes, seed=0)
    chance = draw(noise, DrawConfig(), dropout=0.0, path=LINEAR, schedule=LEADS)
    clean = Entangled(torch.zeros_like(noise.latents), tuple(map(torch.zeros_like, noise.tokens)))
    labels = Labels(torch.zeros(4000, dtype=torch.int64))
    made = losses(
        lambda latents, tokens, *_: Prediction(latents + 9, tuple(x + 9 for x in tokens)),
        Example(clean, (), labels), chance, null=labels, path=LINEAR,
    )  # fmt: skip
    tau = 1.3 * noise.times
    moves = [tau < 1, (tau > 0.3), tau < 1]
    for loss, moved in zip((made.denoising, *made.tokens), moves, strict=True):
        assert torch.equal(loss > 0, moved)
        assert abs(float(moved.float().mean()) - 1 / 1.3) < 4 * 0.42 / 4000**0.5


def test_lognormal_times_have_the_noise_level_of_their_path() -> None:
    u = (torch.arange(1000) + 0.5) / 1000
    config = DrawConfig(distribution="lognormal", mean=-1.2, std=1.2)
    levels = []
    for name in ("linear", "cosine"):
        path = diffusion_path.build(name)  # type: ignore[arg-type]
        t = training_times(u, config, path).double()
        levels.append((path.sigma(t) / path.alpha(t)).log())
    torch.testing.assert_close(*levels, rtol=1e-4, atol=1e-4)
    assert abs(float(levels[0].mean()) + 1.2) < 1e-3
