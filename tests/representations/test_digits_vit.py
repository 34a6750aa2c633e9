"""The target of the embedded digits: its contract, and that it knows digits it never saw."""

import json

import pytest
import torch
from safetensors import safe_open

from regscale.data import digits
from regscale.representations.digits_vit import WEIGHTS, Config, build


@pytest.fixture(scope="module")
def target():
    return build(Config())


@pytest.fixture(scope="module")
def splits():
    sources = [digits.build(digits.Config(split=s), (8, 8)) for s in ("train", "judge")]
    return [(source.images, source.labels) for source in sources]


def test_features_have_the_shapes_that_the_target_announces(target, splits):
    features = target(splits[0][0][:5])
    rows, columns = target.grid(8, 8)
    assert features.tokens.shape == (5, target.num_tokens, target.width)
    assert features.patches.shape == (5, rows * columns, target.width)
    assert features.tokens.dtype == features.patches.dtype == torch.float32


def test_every_feature_vector_has_mean_0_and_variance_1(target, splits):
    for vectors in target(splits[1][0]):
        # LayerNorm adds 1e-5 to the variance it divides by.
        torch.testing.assert_close(
            vectors.mean(-1), torch.zeros(vectors.shape[:-1]), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            vectors.var(-1, unbiased=False), torch.ones(vectors.shape[:-1]), atol=1e-3, rtol=0
        )


def test_the_nearest_class_mean_names_unseen_digits(target, splits):
    (seen, labels), (unseen, asked) = splits
    tokens = target(seen).tokens[:, 0]
    means = torch.stack([tokens[labels == label].mean(0) for label in range(10)])
    named = torch.cdist(target(unseen).tokens[:, 0], means).argmin(1)
    assert (named == asked).float().mean() > 0.96


def test_features_are_fp32_under_autocast_and_do_not_depend_on_the_batch(target, splits):
    images = splits[0][0][:8]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = target(images).tokens
    alone = torch.cat([target(image[None]).tokens for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)  # order of sums


def test_larger_digits_are_resized_to_eight_pixels(target, splits):
    images = splits[0][0][:4]
    larger = images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert target(larger).patches.shape == (4, 16, target.width)
    assert target.grid(32, 32) == (4, 4)


def test_the_identity_is_of_the_weights(target):
    assert target.identity == build(Config()).identity
    assert target.identity.startswith("digits_vit-")


def test_the_file_says_its_accuracy_and_is_small():
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert float(metadata["accuracy_judge_split"]) > 97, json.dumps(metadata)
    assert WEIGHTS.stat().st_size < 300_000
