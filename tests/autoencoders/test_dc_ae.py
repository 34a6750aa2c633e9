"""The deep-compression autoencoder, against the library's own on a tiny saved model."""

import pytest
import torch
from diffusers import AutoencoderDC

from regscale.autoencoders.dc_ae import Config, build
from regscale.errors import RegscaleError

TINY = {"latent_channels": 4, "factor": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dc_ae")
    torch.manual_seed(0)
    AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        attention_head_dim=4,
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def images():
    chance = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=chance)


@torch.no_grad()
def test_latents_are_the_librarys_scaled_whatever_the_noise(folder, images):
    autoencoder = build(Config(model=folder, **TINY))
    moments = autoencoder.encode(images)
    library = AutoencoderDC.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    latents = library.encode(images / 127.5 - 1).latent
    torch.testing.assert_close(moments.mean, latents, rtol=0, atol=1e-6)
    assert latents.shape[1:] == autoencoder.latent_shape(16, 24) == (4, 4, 6)
    assert not moments.std.any()
    drawn = autoencoder.latents(moments, torch.randn(latents.shape))
    torch.testing.assert_close(drawn, latents * 0.41407, rtol=0, atol=1e-6)


@torch.no_grad()
def test_decoding_is_the_librarys(folder):
    autoencoder = build(Config(model=folder, **TINY))
    chance = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 4, 6, generator=chance)
    library = AutoencoderDC.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    pixels = library.decode(latents / 0.41407).sample
    expected = torch.clamp(255 * ((pixels + 1) / 2), 0, 255).to(torch.uint8)
    # truncation turns a difference in the last bit into one level
    assert (autoencoder.decode(latents).int() - expected.int()).abs().max() <= 1


def test_the_published_shape_needs_no_weights():
    autoencoder = build(Config())
    assert autoencoder.latent_shape(512, 256) == (32, 16, 8)
    with pytest.raises(RegscaleError, match=r"dc_ae: image size.*Crop to 224x256"):
        autoencoder.latent_shape(250, 256)
