"""Schedules: ends, order, what holds between leaves, and what a user may not ask for."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regscale.config import Invalid
from regscale.schedule import Config, Schedule
from regscale.types import LeafFloats

leads = st.floats(0, 1)
targets = st.one_of(
    st.just(Config()),
    st.floats(0.1, 10).map(lambda s: Config(kind="shift", shift=s)),
    leads.map(lambda lead: Config(kind="lead", lead=lead)),
    leads.map(lambda lead: Config(kind="independent", lead=lead)),
)
schedules = st.lists(targets, min_size=0, max_size=4).map(lambda some: Schedule(tuple(some)))


@settings(max_examples=40, deadline=None)
@given(schedules)
def test_every_leaf_goes_from_exactly_1_to_exactly_0_and_never_back(schedule: Schedule) -> None:
    readings = [schedule.times(1 - i / 64) for i in range(65)]
    assert set(readings[0].leaves) == {1}
    assert set(readings[-1].leaves) == {0}
    for before, after in itertools.pairwise(readings):
        assert all(a >= b for a, b in zip(before.leaves, after.leaves, strict=True))


@settings(max_examples=40, deadline=None)
@given(schedules)
def test_rates_integrate_to_the_way_of_each_leaf(schedule: Schedule) -> None:
    """The midpoint rule in each segment: the rates are the derivatives of the times there."""
    for start, stop in schedule.segments():
        begun, ended = schedule.times(start), schedule.times(stop)
        grid = [start + (stop - start) * (i + 0.5) / 400 for i in range(400)]
        rates = [schedule.rates(u, (start, stop)).leaves for u in grid]
        for i, (a, b) in enumerate(zip(begun.leaves, ended.leaves, strict=True)):
            way = sum(rate[i] for rate in rates) * (start - stop) / 400
            assert abs(way - (a - b)) < 1e-3


@settings(deadline=None)
@given(schedules, st.floats(0.001, 0.2))
def test_the_last_u_with_a_time_is_the_last(schedule: Schedule, t: float) -> None:
    last = schedule.last_with(t)
    assert max(schedule.times(last).leaves) >= t * (1 - 1e-9)
    assert max(schedule.times(last * 0.99).leaves) < t


def test_a_leading_target_is_clean_while_the_image_has_that_time_left() -> None:
    schedule = Schedule((Config(kind="lead", lead=0.3),))
    for u in (0.2, 0.5, 0.7):
        image, (token,) = schedule.times(u)
        assert token == pytest.approx(max(image - 0.3, 0))
    assert schedule.times(1.1 / 1.3) == LeafFloats(1.0, (pytest.approx(0.8),))


def test_training_and_sampling_pair_the_same_times() -> None:
    schedule = Schedule((Config(kind="lead", lead=0.3), Config(kind="shift", shift=0.5), Config()))
    u = torch.linspace(0, 1, 21, dtype=torch.float64)
    times, moving = schedule.training(u)
    made = torch.stack([times.image, *times.tokens], dim=1)
    torch.testing.assert_close(
        made, torch.tensor([schedule.times(x).leaves for x in u.tolist()]).double()
    )
    assert moving is not None
    moves = torch.stack([moving.image, *moving.tokens], dim=1)
    assert torch.equal(moves.bool(), (made > 0) & (made < 1))


def test_an_independent_target_is_trained_at_its_own_times_whatever_the_order_of_sampling() -> None:
    u, own = torch.rand(50), torch.rand(50)
    for lead in (0.0, 1.0):
        schedule = Schedule((Config(), Config(kind="independent", lead=lead)))
        times, moving = schedule.training(u, [own])
        assert moving is None
        assert torch.equal(times.image, u)
        assert torch.equal(times.tokens[0], u)
        assert torch.equal(times.tokens[1], own)


def test_same_is_the_same_number_everywhere() -> None:
    schedule, u = Schedule((Config(), Config())), torch.rand(50)
    times, moving = schedule.training(u)
    assert moving is None
    assert all(torch.equal(t, u) for t in (times.image, *times.tokens))
    assert schedule.times(0.123) == LeafFloats(0.123, (0.123, 0.123))
    assert schedule.segments() == [(1.0, 0.0)]
    assert schedule.rates(0.5, (1.0, 0.0)) == LeafFloats(1.0, (1.0, 1.0))


def test_the_image_does_not_wait_for_a_target_that_is_given() -> None:
    schedule = Schedule((Config(kind="independent"),)).tokens_first()
    assert schedule.times(0.75) == LeafFloats(1.0, (0.5,))
    assert schedule.hold([0]).times(0.75) == LeafFloats(0.75, (0.0,))


def test_only_targets_whose_clean_tokens_met_every_image_may_be_given() -> None:
    may = [Config(kind="independent"), Config(kind="lead", lead=1.0)]
    may_not = [Config(), Config(kind="lead", lead=0.9), Config(kind="shift", shift=0.1)]
    assert all(each.may_be_given for each in may)
    assert not any(each.may_be_given for each in may_not)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "shift", "shift": 0.0}, "shift is positive, found 0.0"),
        ({"kind": "lead", "lead": 1.5}, "lead is within"),
        ({"lead": 0.5}, "lead belongs to a schedule of kind lead or independent, found kind same"),
        ({"kind": "lead", "shift": 2.0}, "shift belongs to a schedule of kind shift"),
    ],
)
def test_a_number_that_its_kind_does_not_read_is_refused(
    wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(Invalid) as caught:
        Config(**wrong)  # type: ignore[arg-type]
    error = caught.value
    assert f"{error.key} {error.what}, found {error.found}".startswith(message)
