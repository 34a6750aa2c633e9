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
from regscale.sampling.solvers import Field, Solver, dopri5, euler, euler_maruyama, heun
from regscale.schedule import Config as ScheduleConfig
from regscale.schedule import Schedule
from regscale.types import Entangled, LeafFloats

LINEAR = diffusion_path.build("linear")
COSINE = diffusion_path.build("cosine")
MEAN, STD = 0.7, 0.4
TOKEN_MEAN, TOKEN_STD = -1.1, 0.8


SCHEDULES = {
    "same": ScheduleConfig(),
    "cleaner": ScheduleConfig(kind="shift", shift=0.4),
    "noisier": ScheduleConfig(kind="shift", shift=2.5),
    "ahead": ScheduleConfig(kind="lead", lead=0.3),
    "first": ScheduleConfig(kind="independent", lead=1.0),
}
SAME = Schedule((SCHEDULES["same"],))


def schedule_of(name: str) -> Schedule:
    return Schedule((SCHEDULES[name],))


def gaussian(path: Path = LINEAR) -> Callable[[Entangled, LeafFloats], Entangled]:
    """The exact velocity field of a Gaussian image and a Gaussian token."""

    def velocity(x: Tensor, t: float, mean: float, std: float) -> Tensor:
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = path.alpha(time), path.sigma(time)
        excess = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        data, noise = mean + alpha * std**2 * excess, sigma * excess
        return path.alpha_dot(time) * data + path.sigma_dot(time) * noise

    def field(x: Entangled, times: LeafFloats) -> Entangled:
        return Entangled(
            velocity(x.latents, times.image, MEAN, STD),
            (velocity(x.tokens[0], times.tokens[0], TOKEN_MEAN, TOKEN_STD),),
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


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("path", [LINEAR, COSINE])
@pytest.mark.parametrize(("module", "order"), [(euler, 1), (heun, 2)])
def test_an_ode_solver_has_its_order(module: object, order: int, path: Path, schedule: str) -> None:
    """Also where a leaf starts or ends to move within a step."""
    noise = normals(16)
    errors = []
    for steps in (200, 400):
        solve = module.build(module.Config(num_steps=steps), path)  # type: ignore[attr-defined]
        made = solve(gaussian(path), noise, schedule_of(schedule))
        errors.append(error(made, exact(noise(0))))
    slope = torch.log2(torch.tensor(errors[0] / errors[1]))
    assert abs(float(slope) - order) < 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_of_dopri5_falls_with_its_tolerance(schedule: str) -> None:
    noise = normals(16)
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        solve = dopri5.build(dopri5.Config(rtol=tolerance, atol=tolerance), LINEAR)
        made = solve(gaussian(), noise, schedule_of(schedule))
        errors.append(error(made, exact(noise(0))))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-7


@pytest.mark.parametrize("path", [LINEAR, COSINE])
@pytest.mark.parametrize("diffusion", ["2t", "sigma"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_euler_maruyama_gives_the_gaussian_back(schedule: str, diffusion: str, path: Path) -> None:
    count = 10_000
    config = euler_maruyama.Config(num_steps=200, diffusion=diffusion, last_time=0.01)
    solve = euler_maruyama.build(config, path)
    made = solve(gaussian(path), normals(count), schedule_of(schedule))
    wanted = [(made.latents, MEAN, STD), (made.tokens[0], TOKEN_MEAN, TOKEN_STD)]
    for leaf, mean, std in wanted:
        # 40,000 numbers: 4 standard errors, and 1% for 200 steps of a first-order method
        assert abs(float(leaf.mean()) - mean) < 4 * std / 200 + 0.01 * std
        assert abs(float(leaf.std()) / std - 1) < 4 / 283 + 0.01


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
            field(
                Entangled(x.latents, (x.latents.flatten(2),)), LeafFloats(t.image, (1.0,))
            ).latents
        )
        return euler_maruyama.build(config, LINEAR)(image_only, noise, Schedule(())).latents

    reference = run(finest)
    errors = [float((run(n) - reference).square().mean().sqrt()) for n in (32, 64, 128)]
    slopes = [float(torch.log2(torch.tensor(a / b))) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - 1) < 0.1 for slope in slopes), slopes


def test_the_linear_and_ode_solvers_agree_on_one_answer() -> None:
    noise = normals(8)
    a = heun.build(heun.Config(num_steps=400), LINEAR)(gaussian(), noise, SAME)
    b = dopri5.build(dopri5.Config(rtol=1e-8, atol=1e-8), LINEAR)(gaussian(), noise, SAME)
    assert error(a, b) < 1e-4


SOLVERS = {
    "euler": euler.Config(num_steps=7),
    "heun": heun.Config(num_steps=8),  # the second velocity of a step is at a state of no step
    "euler_maruyama": euler_maruyama.Config(num_steps=7),
    "dopri5": dopri5.Config(rtol=1e-3, atol=1e-3),
}
MANY = Schedule((*SCHEDULES.values(), ScheduleConfig(kind="independent", lead=0.7)))


def built(kind: str) -> Solver:
    module = {"euler": euler, "heun": heun, "euler_maruyama": euler_maruyama, "dopri5": dopri5}
    return module[kind].build(SOLVERS[kind], LINEAR)  # type: ignore[attr-defined, no-any-return]


def zeros(leaves: int) -> Entangled:
    return Entangled(
        torch.zeros(1, 1, 1, 1).double(),
        tuple(torch.zeros(1, 1, 1).double() for _ in range(leaves)),
    )


def test_an_adaptive_solver_asks_for_no_time_beyond_the_end() -> None:
    """There guidance has no interval, and no model was trained."""
    seen: list[float] = []
    field = gaussian()

    def noted(x: Entangled, times: LeafFloats) -> Entangled:
        seen.append(times.image)
        return field(x, times)

    dopri5.build(dopri5.Config(), LINEAR)(noted, normals(8), SAME)
    assert len(seen) > 20
    assert min(seen) >= 0


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_leaf_goes_from_1_to_0_in_its_own_time(kind: str) -> None:
    """Along a velocity of 1 each leaf goes exactly the way of its time: by -1; and its time falls
    from 1 and never rises. (The score of such a velocity has no meaning: no noise, no score.)"""
    seen: list[LeafFloats] = []

    def field(x: Entangled, times: LeafFloats) -> Entangled:
        seen.append(times)
        return x.map(torch.ones_like)

    count = len(MANY.targets)
    solve = built(kind)
    if kind == "euler_maruyama":
        field = without_score(field)
    made = solve(field, lambda step: zeros(count), MANY)
    for leaf in made.leaves:  # dopri5 integrates the rates of shifted times to its tolerance
        assert abs(float(leaf) + 1) < (1e-3 if kind == "dopri5" else 1e-12)
    assert seen[0] == LeafFloats(1.0, (1.0,) * count)
    for times in seen:
        assert all(0 <= t <= 1 for t in times.leaves)
    if kind in ("euler", "euler_maruyama"):
        for before, after in itertools.pairwise(seen):
            assert all(a >= b for a, b in zip(before.leaves, after.leaves, strict=True))


def without_score(field: Field) -> Field:
    """On the linear path -t s = x + (1 - t) v, so with w = 2t the drift v - t s is 1 for
    v = (1 - x) / (2 - t)."""

    def changed(x: Entangled, times: LeafFloats) -> Entangled:
        ones = field(x, times)
        return (ones - x) * times.map(lambda t: 1 / (2 - t))

    return changed


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_leaf_that_stands_still_takes_neither_drift_nor_noise(kind: str) -> None:
    """Token first: until it is done the image keeps the bits that it started with; then the token
    keeps its own. A held token keeps those that were given."""
    noise, states = normals(4), list[tuple[Entangled, LeafFloats]]()

    def field(x: Entangled, times: LeafFloats) -> Entangled:
        states.append((x, times))
        return gaussian()(x, times)

    made = built(kind)(field, noise, schedule_of("first"))
    waiting = [x.latents for x, times in states if times.image == 1]
    done = [x.tokens[0] for x, times in states if times.tokens[0] == 0 and times.image < 1]
    assert len(waiting) > 2
    assert len(done) > 2
    assert all(torch.equal(x, noise(0).latents) for x in waiting)
    assert all(torch.equal(x, made.tokens[0]) for x in done)
    held = built(kind)(field, noise, schedule_of("first").hold([0]))
    assert torch.equal(held.tokens[0], noise(0).tokens[0])
    assert all(torch.isfinite(leaf).all() for leaf in held.leaves)


def test_no_leaf_of_euler_maruyama_ends_in_noise() -> None:
    """Each leaf's last step, from `last_time` or above, adds none: so the spread of what is left of
    a point (a Gaussian of deviation 0) is only that of the step."""
    config = euler_maruyama.Config(num_steps=400, last_time=0.04)

    def point(x: Entangled, times: LeafFloats) -> Entangled:
        return x * times.map(lambda t: 1 / t if t else 0.0)  # of data at 0: noise is x / t

    for name in SCHEDULES:
        made = euler_maruyama.build(config, LINEAR)(point, normals(500), schedule_of(name))
        spreads = [float(leaf.std()) for leaf in made.leaves]
        assert all(0.03 < spread < 0.06 for spread in spreads), (name, spreads)
