"""`Entangled` is one vector; batches split and say what they lack."""

import pytest
import torch

from regscale.errors import RegscaleError
from regscale.types import Batch, Entangled, Features, Labels, Times, choose


def vector(seed: int) -> Entangled:
    g = torch.Generator().manual_seed(seed)
    tokens = (torch.randn(3, 1, 4, generator=g), torch.randn(3, 2, 8, generator=g))
    return Entangled(torch.randn(3, 4, 2, 2, generator=g), tokens)


def test_it_adds_and_scales_leaf_by_leaf() -> None:
    a, b = vector(0), vector(1)
    c = 2.0 * (a + b) - b * 3.0
    for made, x, y in zip(c.leaves, a.leaves, b.leaves, strict=True):
        assert torch.equal(made, (x + y) * 2.0 - y * 3.0)


def test_each_leaf_may_have_its_own_scale_for_each_sample() -> None:
    a = vector(0)
    times = Times(torch.tensor([0.0, 1.0, 2.0]), (torch.ones(3), torch.full((3,), 5.0)))
    scaled = a * times
    assert torch.equal(scaled.latents[2], 2 * a.latents[2])
    assert torch.equal(scaled.tokens[0], a.tokens[0])
    assert torch.equal(scaled.tokens[1], 5 * a.tokens[1])


def test_vectors_of_different_targets_do_not_add() -> None:
    with pytest.raises(ValueError, match="zip"):
        vector(0) + Entangled(torch.zeros(3, 4, 2, 2))


def test_conditions_are_chosen_sample_by_sample() -> None:
    keep = torch.tensor([True, False, True])
    chosen = choose(keep, Labels(torch.tensor([1, 2, 3])), Labels(torch.tensor([9, 9, 9])))
    assert chosen.labels.tolist() == [1, 9, 3]


def batch(size: int = 5) -> Batch:
    return Batch(
        keys=tuple(f"k{i}" for i in range(size)),
        positions=torch.arange(size),
        labels=torch.arange(size),
        features={"vit": Features(torch.arange(size)[:, None, None], None)},
        captions=tuple(f"text {i}" for i in range(size)),
    )


def test_a_batch_splits_every_field_alike() -> None:
    parts = list(batch().split(2))
    assert [len(part.keys) for part in parts] == [2, 2, 1]
    assert parts[1].keys == ("k2", "k3")
    assert parts[1].captions == ("text 2", "text 3")
    assert parts[1].labels is not None
    assert parts[1].labels.tolist() == [2, 3]
    assert parts[2].features is not None
    assert parts[2].features["vit"].tokens.flatten().tolist() == [4]


def test_a_missing_field_is_told_with_what_there_is() -> None:
    with pytest.raises(RegscaleError) as caught:
        batch().require("images", by="target dinov2")
    assert str(caught.value) == (
        "sample k0: has no 'images', which target dinov2 needs; found features, labels, captions. "
        "Choose data that holds images, or another kind than target dinov2."
    )
