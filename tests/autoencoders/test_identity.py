"""Pixels as latents: nothing is lost."""

import pytest
import torch

from regscale.autoencoders.identity import Config, build
from regscale.config import Invalid

EVERY_VALUE = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_value_survives_both_ways(channels, scale):
    autoencoder = build(Config(channels=channels, scale=scale))
    images = EVERY_VALUE.repeat(2, 3, 1, 1)
    moments = autoencoder.encode(images)
    latents = autoencoder.latents(moments, torch.randn(moments.mean.shape))
    assert latents.shape[1:] == autoencoder.latent_shape(16, 16) == (channels, 16, 16)
    assert latents.min() == -scale
    assert latents.max() == scale
    assert torch.equal(autoencoder.decode(latents), images)


def test_one_channel_is_the_mean_of_three():
    images = torch.tensor([10, 20, 60], dtype=torch.uint8).reshape(1, 3, 1, 1)
    autoencoder = build(Config(channels=1))
    decoded = autoencoder.decode(autoencoder.encode(images).mean)
    assert decoded.flatten().tolist() == [30, 30, 30]


def test_decode_rounds_to_the_nearest_and_stays_in_range():
    latents = torch.tensor([-2.0, 0.49 / 127.5, 0.51 / 127.5, 2.0]).reshape(1, 1, 1, 4)
    decoded = build(Config(channels=1)).decode(latents)
    assert decoded[0, 0, 0].tolist() == [0, 128, 128, 255]


@pytest.mark.parametrize("values", [{"channels": 2}, {"scale": 0.0}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(Invalid, match=next(iter(values))):
        Config(**values)
