"""The embedded digits: what they are, how they are split, and that both never change."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from regscale.data.digits import Config, build
from regscale.errors import RegscaleError


@pytest.fixture(scope="module")
def splits():
    return {split: build(Config(split=split), (8, 8)) for split in ("train", "judge")}


def whole(source):
    indices = range(source.num_samples)
    return source.read(indices, indices)


def test_the_splits_are_disjoint_and_hold_every_digit(splits):
    keys = [key for source in splits.values() for key in whole(source).keys]
    assert sorted(keys) == [f"digit-{i:05d}" for i in range(1797)]


def test_two_thirds_of_every_class_are_for_training(splits):
    train, judge = (np.bincount(whole(splits[s]).labels, minlength=10) for s in ("train", "judge"))
    assert np.abs(train - 2 * judge).max() <= 1


def test_an_image_is_the_grey_digit_in_255_steps_three_times(splits):
    batch = splits["train"].read([17], [0])
    original = load_digits().images[int(batch.keys[0].removeprefix("digit-"))]
    assert batch.images.shape == (1, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    for channel in batch.images[0]:
        assert np.abs(channel.numpy() * (16 / 255) - original).max() < 0.04  # rounding to 1/255


def test_labels_belong_to_their_keys(splits):
    batch = whole(splits["judge"])
    places = [int(key.removeprefix("digit-")) for key in batch.keys]
    assert batch.labels.tolist() == load_digits().target[places].tolist()


def test_reading_keeps_the_order_asked_for(splits):
    batch = splits["train"].read([5, 2, 5], [70, 71, 72])
    assert batch.positions.tolist() == [70, 71, 72]
    assert batch.keys[0] == batch.keys[2] != batch.keys[1]
    assert torch.equal(batch.images[0], batch.images[2])


def test_the_fingerprint_is_of_the_content(splits):
    assert splits["train"].fingerprint == build(Config(), (8, 8)).fingerprint
    assert splits["train"].fingerprint != splits["judge"].fingerprint
    # The shipped target and judge were trained on this split: it must never move.
    assert splits["train"].fingerprint == "digits-train-1151b2c25b7f1c7a224a9be5c100c7a1"


def test_an_index_outside_the_split_is_refused(splits):
    with pytest.raises(RegscaleError, match=r"samples 0 to 598; found sample 599"):
        splits["judge"].read([0, 599], [0, 1])


def test_another_image_size_is_refused():
    with pytest.raises(RegscaleError, match="image_size: is 8x8 for the digits; found 32x32"):
        build(Config(), (32, 32))
