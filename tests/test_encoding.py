"""The frozen towers: stored fields before computed ones, patches on the model's own grid."""

import pytest
import torch

from regscale import assemble
from regscale.encoding import resample
from regscale.errors import RegscaleError
from regscale.training.loop import open_loader
from regscale.types import Batch, Features, Moments
from tests.conftest import MakeConfig


def test_stored_moments_and_features_take_the_place_of_towers(tiny: MakeConfig) -> None:
    from dataclasses import replace

    job = assemble.job(tiny())
    batch: Batch = next(open_loader(job, 0))
    computed = job.towers.encode(batch)
    assert batch.images is not None
    stored = replace(
        batch,
        images=None,
        moments=job.towers.autoencoder.encode(batch.images),
        features={"vit": job.towers.targets["vit"](batch.images)},
    )
    again = job.towers.encode(stored)
    for a, b in zip(computed.clean.leaves, again.clean.leaves, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(computed.features[0].tokens, again.features[0].tokens)


def test_the_posterior_is_sampled_with_the_sample_s_own_noise(tiny: MakeConfig) -> None:
    from dataclasses import replace

    job = assemble.job(tiny())
    batch: Batch = next(open_loader(job, 0))
    assert batch.noise is not None
    shape = batch.noise.posterior.shape
    moments = Moments(torch.full(shape, 0.5), torch.full(shape, 2.0))
    made = job.towers.encode(replace(batch, moments=moments)).clean.latents
    torch.testing.assert_close(made, 0.5 + 2.0 * batch.noise.posterior)


def test_without_images_or_stored_fields_the_sample_is_named(tiny: MakeConfig) -> None:
    from dataclasses import replace

    job = assemble.job(tiny())
    batch = replace(next(open_loader(job, 0)), images=None)
    with pytest.raises(RegscaleError, match=r"sample digit-\d+: has no 'images', which target vit"):
        job.towers.encode(batch)


def test_patches_move_onto_another_grid() -> None:
    rows = torch.arange(4.0).repeat_interleave(4).reshape(1, 16, 1)
    assert torch.equal(resample(rows, (4, 4), (4, 4)), rows)
    small = resample(rows, (4, 4), (2, 2)).flatten()
    assert small[0] == small[1] < small[2] == small[3]
    assert float(small.mean()) == pytest.approx(1.5)
    wide = Features(torch.zeros(1, 1, 3), resample(rows, (4, 4), (8, 2)))
    assert wide.patches is not None
    assert wide.patches.shape == (1, 16, 1)


# Stored features


def stored(batch: Batch, **fields: object) -> Batch:
    from dataclasses import replace

    return replace(batch, **fields)  # type: ignore[arg-type]


def test_stored_patches_move_onto_the_model_s_grid(tiny: MakeConfig) -> None:
    """As computed ones do: here from 4x4 patches of the target onto 2x2 of the model."""
    job = assemble.job(tiny("model.patch_size=4"))
    batch: Batch = next(open_loader(job, 0))
    assert batch.images is not None
    computed = job.towers.encode(batch).features[0]
    features = job.towers.targets["vit"](batch.images)
    again = job.towers.encode(stored(batch, features={"vit": features})).features[0]
    assert again.patches is not None
    assert again.patches.shape == (8, 4, 48)
    assert computed.patches is not None
    assert torch.equal(again.patches, computed.patches)


def test_patches_that_are_not_stored_are_computed_from_images(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    batch: Batch = next(open_loader(job, 0))
    computed = job.towers.encode(batch).features[0]
    tokens = torch.full_like(computed.tokens, 3.0)
    made = job.towers.encode(stored(batch, features={"vit": Features(tokens, None)}))
    assert torch.equal(made.features[0].tokens, tokens)
    assert torch.equal(made.clean.tokens[0], tokens)
    assert computed.patches is not None
    assert made.features[0].patches is not None
    assert torch.equal(made.features[0].patches, computed.patches)


def test_without_patches_and_images_the_user_learns_both_ways_out(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    batch: Batch = next(open_loader(job, 0))
    features = {"vit": job.towers.encode(batch).features[0]._replace(patches=None)}
    moments = Moments(torch.zeros(8, 1, 8, 8), torch.zeros(8, 1, 8, 8))
    bare = stored(batch, images=None, moments=moments, features=features)
    with pytest.raises(RegscaleError) as caught:
        job.towers.encode(bare)
    assert "has no 'vit.patches', which align.vit needs; found stored tokens" in str(caught.value)
    assert caught.value.fix.startswith("Add images or vit.patches to data.fields")
    alone = assemble.job(tiny("name=alone", "align.vit=null"))
    assert alone.towers.encode(bare).clean.tokens[0].shape == (8, 1, 48)


@pytest.mark.parametrize(
    ("tokens", "patches", "message"),
    [
        ((8, 2, 48), (8, 16, 48), r"'vit' has the shape \(1, 48\) of .* vit; found \(2, 48\)"),
        ((8, 1, 32), (8, 16, 32), r"'vit' has the shape \(1, 48\) of .* vit; found \(1, 32\)"),
        ((8, 1, 48), (8, 9, 48), r"'vit\.patches' has the shape \(16, 48\) .*; found \(9, 48\)"),
    ],
)
def test_features_of_another_shape_are_refused(
    tiny: MakeConfig, tokens: tuple[int, ...], patches: tuple[int, ...], message: str
) -> None:
    job = assemble.job(tiny())
    features = {"vit": Features(torch.zeros(tokens), torch.zeros(patches))}
    with pytest.raises(RegscaleError, match=message):
        job.towers.encode(stored(next(open_loader(job, 0)), features=features))


def test_moments_of_another_shape_are_refused(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    moments = Moments(torch.zeros(8, 1, 1, 1), torch.zeros(8, 1, 1, 1))  # which would broadcast
    with pytest.raises(RegscaleError, match=r"'moments' has the shape \(1, 8, 8\) of"):
        job.towers.encode(stored(next(open_loader(job, 0)), moments=moments))
