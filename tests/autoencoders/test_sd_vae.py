"""The Stable Diffusion autoencoder, against the library's own on tiny saved models."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from regscale.autoencoders.sd_vae import Config, build
from regscale.config import Invalid
from regscale.errors import RegscaleError

BOTH = ("DownEncoderBlock2D", "UpDecoderBlock2D")


def save_tiny(folder, seed):
    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=BOTH[:1] * 2,
        up_block_types=BOTH[1:] * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vae")
    return save_tiny(root / "mse", 0), save_tiny(root / "ema", 1)


@pytest.fixture(scope="module")
def images():
    chance = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=chance)


@torch.no_grad()
def test_encoding_is_the_librarys_posterior_unscaled(folders, images):
    moments = build(Config(model=folders[0], factor=2)).encode(images)
    library = AutoencoderKL.from_pretrained(folders[0], low_cpu_mem_usage=False).eval()
    posterior = library.encode(images / 127.5 - 1).latent_dist
    torch.testing.assert_close(moments.mean, posterior.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(moments.std, posterior.std, rtol=0, atol=1e-6)
    assert moments.mean.shape == (3, 4, 8, 12)


@torch.no_grad()
def test_decoding_is_the_published_one_with_the_other_models_decoder(folders):
    autoencoder = build(Config(model=folders[0], decoder=folders[1], factor=2, decode_batch=2))
    chance = torch.Generator().manual_seed(2)
    latents = 0.18215 * torch.randn(5, 4, 8, 12, generator=chance)
    library = AutoencoderKL.from_pretrained(folders[1], low_cpu_mem_usage=False).eval()
    samples = library.decode(latents / 0.18215).sample
    published = torch.clamp(255.0 * ((samples + 1) / 2.0), 0, 255).to(torch.uint8)
    decoded = autoencoder.decode(latents)
    # another batch size may round a sum differently, and truncation makes one level of it
    assert (decoded.int() - published.int()).abs().max() <= 1
    assert (decoded != published).float().mean() < 1e-3
    assert "encoder" not in vars(autoencoder)


def test_latents_are_a_scaled_posterior_sample(images, folders):
    autoencoder = build(Config(model=folders[0], factor=2, scale=0.5, shift=0.25))
    moments = autoencoder.encode(images)
    noise = torch.randn(moments.mean.shape)
    expected = (moments.mean + moments.std * noise - 0.25) * 0.5
    torch.testing.assert_close(autoencoder.latents(moments, noise), expected)


def test_the_shape_is_known_without_weights():
    autoencoder = build(Config(model="nobody/nothing"))
    assert autoencoder.latent_shape(256, 512) == (4, 32, 64)
    assert not {"encoder", "decoder"} & vars(autoencoder).keys()
    with pytest.raises(RegscaleError, match=r"found 250x256\. Crop to 248x256"):
        autoencoder.latent_shape(250, 256)


def test_identity_tells_encoders_apart_and_nothing_else(folders):
    def identity(model, **values):
        return build(Config(model=model, factor=2, **values)).identity

    same = identity(folders[0], decoder=folders[1], scale=1.0)
    assert identity(folders[0], decoder=None) == same
    assert identity(folders[1]) != same
    assert identity(folders[0], dtype="bf16") != same


def test_weights_of_another_shape_name_the_settings(folders, images):
    with pytest.raises(RegscaleError, match=r"latent_channels=4 autoencoder\.factor=2"):
        build(Config(model=folders[0])).encode(images)


def test_a_folder_that_is_missing_or_incomplete_is_refused(tmp_path, images):
    with pytest.raises(RegscaleError, match=r"sd_vae: model .*cannot be loaded"):
        build(Config(model=str(tmp_path / "none"))).encode(images)
    folder = save_tiny(tmp_path / "cut", 2)
    file = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["quant_conv.weight"]
    save_file(weights, file)
    with pytest.raises(RegscaleError, match=r"weights without quant_conv\.weight"):
        build(Config(model=folder, factor=2)).encode(images)
    file.write_bytes(b"not a tensor file")
    with pytest.raises(RegscaleError, match="cannot be loaded"):
        build(Config(model=folder, factor=2)).encode(images)


@pytest.mark.parametrize("values", [{"scale": 0.0}, {"factor": 0}, {"decode_batch": 0}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(Invalid, match=next(iter(values))):
        Config(**values)
