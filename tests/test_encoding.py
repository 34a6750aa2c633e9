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
