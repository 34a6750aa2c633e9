"""Paths: ends, velocity and score."""

import pytest
import torch

from regscale import path as diffusion_path
from regscale.types import Entangled, Times

PATHS = ("linear", "cosine")


def leaves(seed: int) -> Entangled:
    g = torch.Generator().manual_seed(seed)
    return Entangled(
        torch.randn(4, 3, 2, 2, generator=g, dtype=torch.float64),
        (torch.randn(4, 2, 5, generator=g, dtype=torch.float64),),
    )


def at(image: float, token: float | None = None) -> Times:
    t = torch.full((4,), image, dtype=torch.float64)
    return Times(t, (t if token is None else torch.full_like(t, token),))


@pytest.mark.parametrize("name", PATHS)
def test_it_leads_from_data_to_noise(name: str) -> None:
    path, data, noise = diffusion_path.build(name), leaves(0), leaves(1)
    for t, end in ((0.0, data), (1.0, noise)):
        made = path.interpolate(data, noise, at(t))
        for a, b in zip(made.leaves, end.leaves, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_is_the_derivative_in_time(name: str) -> None:
    path, data, noise, h = diffusion_path.build(name), leaves(0), leaves(1), 1e-6
    ahead, behind = (path.interpolate(data, noise, at(0.3 + s, 0.7 + s)) for s in (h, -h))
    velocity = path.velocity(data, noise, at(0.3, 0.7))
    for a, b, v in zip(ahead.leaves, behind.leaves, velocity.leaves, strict=True):
        torch.testing.assert_close((a - b) / (2 * h), v, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_the_score_is_minus_the_noise_over_sigma(name: str) -> None:
    path, data, noise = diffusion_path.build(name), leaves(0), leaves(1)
    times = at(0.3, 0.8)
    state = path.interpolate(data, noise, times)
    score = path.score(path.velocity(data, noise, times), state, times)
    expected = noise * times.map(lambda t: -1 / path.sigma(t))
    for a, b in zip(score.leaves, expected.leaves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
