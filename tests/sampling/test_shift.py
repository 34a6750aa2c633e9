"""The shift of a solver's steps (SD3, arXiv 2403.03206, eq. 23)."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from regscale import path as diffusion_path
from regscale.config import Invalid
from regscale.sampling import SamplingConfig
from regscale.sampling.solvers import euler, euler_maruyama, heun
from regscale.schedule import Config, Schedule, shifted
from tests.sampling.test_solvers import error, exact, gaussian, normals

LINEAR = diffusion_path.build("linear")


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("stop", [0.0, 0.04])
def test_a_grid_goes_from_1_to_its_stop_and_spends_more_steps_where_it_is_shifted_to(
    shift: float, stop: float
) -> None:
    grid = Schedule((), grid_shift=shift).grid(50, stop=stop)
    assert grid[0] == 1
    assert grid[-1] == pytest.approx(stop, abs=1e-15)
    assert all(a > b for a, b in pairwise(grid))
    even = Schedule(()).grid(50, stop=stop)
    noisy, evenly = (sum(u > 0.5 for u in each) for each in (grid, even))
    assert (noisy > evenly, noisy < evenly) == (shift > 1, shift < 1)


def test_without_a_shift_the_grid_is_even_to_the_bit() -> None:
    assert Schedule(()).grid(250) == [1.0 - i / 250 for i in range(250)] + [0.0]


@pytest.mark.parametrize(("m", "n"), [(512**2, 256**2), (1024**2, 256**2), (128**2, 256**2)])
def test_by_the_size_of_a_picture_as_much_is_known_of_a_constant_one_as_before(
    m: int, n: int
) -> None:
    """The premise of eq. 23: of a constant picture of n pixels on the linear path the mean is known
    up to t / (1 - t) / sqrt(n), and the shifted time of m pixels gives that deviation again."""
    for t in (0.1, 0.5, 0.9):
        moved = shifted(t, (m / n) ** 0.5)
        assert moved / (1 - moved) / m**0.5 == pytest.approx(t / (1 - t) / n**0.5)


@pytest.mark.parametrize("shift", [0.5, 3.0])
@pytest.mark.parametrize(("module", "order"), [(euler, 1), (heun, 2)])
def test_a_solver_keeps_its_order_on_a_shifted_grid(
    module: object, order: int, shift: float
) -> None:
    noise, errors = normals(16), []
    schedule = Schedule((Config(kind="lead", lead=0.3),), grid_shift=shift)
    for steps in (200, 400):
        solve = module.build(module.Config(num_steps=steps), LINEAR)  # type: ignore[attr-defined]
        errors.append(error(solve(gaussian(), noise, schedule), exact(noise(0))))
    slope = torch.log2(torch.tensor(errors[0] / errors[1]))
    assert abs(float(slope) - order) < 0.1


def test_euler_maruyama_gives_the_gaussian_back_on_a_shifted_grid() -> None:
    solve = euler_maruyama.build(euler_maruyama.Config(num_steps=200, last_time=0.01), LINEAR)
    schedule = replace(Schedule((Config(),)), grid_shift=3.0)
    made = solve(gaussian(), normals(2_500), schedule)
    # 10,000 numbers: 4 standard errors, and 1% for 200 steps of a first-order method
    assert abs(float(made.latents.std()) / 0.4 - 1) < 4 / 141 + 0.01
    assert abs(float(made.latents.mean()) - 0.7) < 4 * 0.4 / 100 + 0.01 * 0.4


@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_a_shift_is_a_positive_number(shift: float) -> None:
    with pytest.raises(Invalid, match="shift: is a positive number"):
        SamplingConfig(shift=shift)
