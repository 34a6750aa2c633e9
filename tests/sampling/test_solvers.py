"""Solvers: measured order, and the Gaussian whose velocity is known exactly.

Data x ~ N(mean, std^2) on the linear path gives, in each dimension,
E[x | x_t] = mean + std^2 (1-t) (x_t - (1-t) mean) / ((1-t)^2 std^2 + t^2) and
v(x_t, t) = E[noise - x | x_t].
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regscale import path as diffusion_path
from regscale.path import Path
from regscale.sampling.solvers import dopri5, euler, euler_maruyama, heun
from regscale.types import Entangled

LINEAR = diffusion_path.build("linear")
COSINE = diffusion_path.build("cosine")
MEAN, STD = 0.7, 0.4
TOKEN_MEAN, TOKEN_STD = -1.1, 0.8


def gaussian(path: Path = LINEAR) -> Callable[[Entangled, float], Entangled]:
    """The exact velocity field of a Gaussian image and a Gaussian token."""

    def velocity(x: Tensor, t: float, mean: float, std: float) -> Tensor:
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = path.alpha(time), path.sigma(time)
        excess = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        data, noise = mean + alpha * std**2 * excess, sigma * excess
        return path.alpha_dot(time) * data + path.sigma_dot(time) * noise

    def field(x: Entangled, t: float) -> Entangled:
        return Entangled(
            velocity(x.latents, t, MEAN, STD),
            (velocity(x.tokens[0], t, TOKEN_MEAN, TOKEN_STD),),
        )

    return field


def normals(count: int) -> Callable[[int], Entangled]:
    """Independent noise for each step, in float64."""

    def noise(step: int) -> Entangled:
        g = torch.Generator().manual_seed(step)
        image = torch.randn(count, 1, 2, 2, generator=g, dtype=torch.float64)
        return Entangled(image, (torch.randn(count, 1, 4, generator=g, dtype=torch.float64),))

    return noise


def exact(start: Entangled) -> Entangled:
    """The probability flow of a Gaussian is linear: noise z ends as mean + std z."""
    return Entangled(MEAN + STD * start.latents, (TOKEN_MEAN + TOKEN_STD * start.tokens[0],))


def error(made: Entangled, want: Entangled) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(made.leaves, want.leaves, strict=True))


@pytest.mark.parametrize("path", [LINEAR, COSINE])
@pytest.mark.parametrize(("module", "order"), [(euler, 1), (heun, 2)])
def test_an_ode_solver_has_its_order(module: object, order: int, path: Path) -> None:
    noise = normals(16)
    errors = []
    for steps in (200, 400):
        solve = module.build(module.Config(num_steps=steps), path)  # type: ignore[attr-defined]
        errors.append(error(solve(gaussian(path), noise), exact(noise(0))))
    slope = torch.log2(torch.tensor(errors[0] / errors[1]))
    assert abs(float(slope) - order) < 0.1


def test_the_error_of_dopri5_falls_with_its_tolerance() -> None:
    noise = normals(16)
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        solve = dopri5.build(dopri5.Config(rtol=tolerance, atol=tolerance), LINEAR)
        errors.append(error(solve(gaussian(), noise), exact(noise(0))))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-7


@pytest.mark.parametrize("path", [LINEAR, COSINE])
@pytest.mark.parametrize("diffusion", ["2t", "sigma"])
def test_euler_maruyama_gives_the_gaussian_back(diffusion: str, path: Path) -> None:
    count = 40_000
    config = euler_maruyama.Config(num_steps=200, diffusion=diffusion, last_time=0.01)
    made = euler_maruyama.build(config, path)(gaussian(path), normals(count))
    wanted = [(made.latents, MEAN, STD), (made.tokens[0], TOKEN_MEAN, TOKEN_STD)]
    for leaf, mean, std in wanted:
        # 160,000 numbers: 4 standard errors, and 1% for 200 steps of a first-order method
        assert abs(float(leaf.mean()) - mean) < 4 * std / 400 + 0.01 * std
        assert abs(float(leaf.std()) / std - 1) < 4 / 566 + 0.01


def test_euler_maruyama_has_strong_order_1_with_additive_noise() -> None:
    """The same Brownian path on finer grids: the error against the finest falls with dt."""
    finest, count = 4096, 256
    g = torch.Generator().manual_seed(0)
    shape = (finest, count, 1, 1, 1)
    increments = torch.randn(shape, generator=g, dtype=torch.float64)
    start = torch.randn(count, 1, 1, 1, generator=g, dtype=torch.float64)

    def run(num_steps: int) -> Tensor:
        stride = finest // num_steps

        def noise(step: int) -> Entangled:
            if step == 0:
                return Entangled(start)
            part = increments[(step - 1) * stride : step * stride]
            return Entangled(part.sum(dim=0) / stride**0.5)

        config = euler_maruyama.Config(num_steps=num_steps + 1, last_time=0.2)
        field = gaussian()
        image_only = lambda x, t: Entangled(  # noqa: E731
            field(Entangled(x.latents, (x.latents.flatten(2),)), t).latents
        )
        return euler_maruyama.build(config, LINEAR)(image_only, noise).latents

    reference = run(finest)
    errors = [float((run(n) - reference).square().mean().sqrt()) for n in (32, 64, 128)]
    slopes = [float(torch.log2(torch.tensor(a / b))) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - 1) < 0.1 for slope in slopes), slopes


def test_the_linear_and_ode_solvers_agree_on_one_answer() -> None:
    noise = normals(8)
    a = heun.build(heun.Config(num_steps=400), LINEAR)(gaussian(), noise)
    b = dopri5.build(dopri5.Config(rtol=1e-8, atol=1e-8), LINEAR)(gaussian(), noise)
    assert error(a, b) < 1e-4
