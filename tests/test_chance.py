"""Random numbers are a pure function of seed, purpose and counter."""

import hashlib

import numpy as np
import torch

from regscale import chance


def test_the_numbers_are_those_of_every_earlier_version() -> None:
    numbers = chance.normal((1000,), seed=7, purpose="golden", counter=3).numpy()
    digest = hashlib.sha256(np.ascontiguousarray(numbers)).hexdigest()
    assert digest[:16] == "97a3251acf398bc2"


def test_seed_purpose_and_counter_each_make_another_stream() -> None:
    base = {"seed": 1, "purpose": "a", "counter": 5}
    first = chance.normal((64,), **base)
    for change in ({"seed": 2}, {"purpose": "b"}, {"counter": 6}):
        assert not torch.equal(first, chance.normal((64,), **(base | change)))
    assert torch.equal(first, chance.normal((64,), **base))


def test_a_batch_may_be_split_anywhere() -> None:
    whole = chance.normals((3, 4), seed=1, purpose="x", counters=range(10))
    parts = [
        chance.normals((3, 4), seed=1, purpose="x", counters=c) for c in ([0], [1, 2], range(3, 10))
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_normals_and_uniforms_have_their_moments() -> None:
    n = chance.normal((200_000,), seed=0, purpose="moments")
    u = chance.uniforms(seed=0, purpose="moments", counters=range(20_000))
    # 200,000 numbers: a mean of 0 +- 4 / sqrt(200,000), a variance of 1 +- 4 sqrt(2 / 200,000)
    assert abs(float(n.mean())) < 0.009
    assert abs(float(n.var()) - 1) < 0.013
    assert 0 <= float(u.min()) < float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 4 * (1 / 12 / 20_000) ** 0.5


def test_a_permutation_holds_every_sample_once() -> None:
    order = chance.permutation(1797, seed=0, purpose="order", counter=2)
    assert sorted(order.tolist()) == list(range(1797))
    assert order.tolist() != chance.permutation(1797, seed=0, purpose="order", counter=3).tolist()
