"""The objective beyond the recorded numbers: times, draws, weights, dropped conditions."""

import pytest
import torch

from regscale import path as diffusion_path
from regscale.data import NoiseShapes, draw_noise
from regscale.objective import DrawConfig, Weights, draw, losses, total
from regscale.objective.draw import training_times
from regscale.objective.losses import alignment
from regscale.types import Entangled, Example, Features, Labels, Losses, Prediction

SHAPES = NoiseShapes(latents=(4, 4, 4), tokens=((1, 8), (2, 6)))
LINEAR = diffusion_path.build("linear")


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
    kept = draw(noise, DrawConfig(), dropout=0.1, path=LINEAR).keep.float().mean()
    assert abs(float(kept) - 0.9) < 4 * (0.09 / 20_000) ** 0.5
    assert bool(draw(noise, DrawConfig(), dropout=0.0, path=LINEAR).keep.all())


def test_a_dropped_condition_reaches_the_model_as_null() -> None:
    noise = draw_noise(list(range(32)), SHAPES, seed=0)
    chance = draw(noise, DrawConfig(), dropout=0.5, path=LINEAR)
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
    chance = draw(noise, DrawConfig(), dropout=0.0, path=LINEAR)
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
