"""The Stable Diffusion autoencoder, against the library's own on tiny saved models."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from regscale.autoencoders._stats import write_stats
from regscale.autoencoders.sd_vae import Config, build
from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.types import Moments

RECORDED = Path(__file__).parents[1] / "reference/sit_reg_tiny.safetensors"
BOTH = ("DownEncoderBlock2D", "UpDecoderBlock2D")


def save_tiny(folder, seed, **settings):
    torch.manual_seed(seed)
    tiny = {
        "block_out_channels": (8, 8),
        "down_block_types": BOTH[:1] * 2,
        "up_block_types": BOTH[1:] * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    AutoencoderKL(**(tiny | settings)).save_pretrained(folder)
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


@pytest.mark.parametrize(("scale", "shift"), [(0.18215, 0.0), (0.3611, 0.1159)])
def test_a_posterior_sample_is_the_published_trainer_s(scale, shift):
    """REG's code: mean, std = chunk(moments); z = (mean + std * noise) * scale + bias.

    No posterior was recorded, so recorded latents stand in for the mean, another recorded tensor
    for the deviation; the noise is the recorded one.
    """
    recorded = load_file(RECORDED)
    mean, std = recorded["loss.latents"] / scale + shift, recorded["forward.x"].abs()
    noise, moments = recorded["loss.noise"], torch.cat([mean, std], dim=1)
    published = (mean + std * noise) * torch.full((1, 4, 1, 1), scale) - shift * scale
    settings = {} if scale == 0.18215 else {"scale": scale, "shift": shift}
    autoencoder = build(Config(**settings))  # the default is the published scale, without a shift
    latents = autoencoder.latents(Moments(*moments.chunk(2, dim=1)), noise)
    if shift == 0:
        assert torch.equal(latents, published)
    # a shift before the scale rounds in another place than a bias after it
    torch.testing.assert_close(latents, published, rtol=0, atol=2e-6)
    # without deviation the recorded latents come back, whatever the noise
    still = autoencoder.latents(Moments(mean, torch.zeros_like(std)), noise)
    torch.testing.assert_close(still, recorded["loss.latents"], rtol=0, atol=1e-6)


@torch.no_grad()
def test_sixteen_channels_without_quant_layers_in_a_pipeline_s_folder(tmp_path, images):
    settings = {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}
    save_tiny(tmp_path / "vae", 3, **settings)
    config = Config(
        model=str(tmp_path),
        decoder=None,
        subfolder="vae",
        scale=0.3611,
        shift=0.1159,
        latent_channels=16,
        factor=2,
    )
    autoencoder = build(config)
    moments = autoencoder.encode(images)
    library = AutoencoderKL.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False).eval()
    posterior = library.encode(images / 127.5 - 1).latent_dist
    torch.testing.assert_close(moments.mean, posterior.mean, rtol=0, atol=1e-6)
    latents = autoencoder.latents(moments, torch.zeros_like(moments.mean))
    torch.testing.assert_close(latents, (posterior.mean - 0.1159) * 0.3611)  # FLUX's
    published = torch.clamp(127.5 * (library.decode(posterior.mean).sample + 1), 0, 255)
    assert (autoencoder.decode(latents).int() - published.int()).abs().max() <= 1


@torch.no_grad()
def test_with_statistics_every_channel_is_standardised(tmp_path, folders, images):
    chance = torch.Generator().manual_seed(4)
    mean, std = torch.randn(4, generator=chance), torch.rand(4, generator=chance) + 0.5
    file = tmp_path / "deep" / "stats.safetensors"
    write_stats(file, mean, std, {})
    autoencoder = build(Config(model=folders[0], decoder=None, factor=2, stats=str(file)))
    plain = build(Config(model=folders[0], decoder=None, factor=2, scale=1.0))
    moments, noise = autoencoder.encode(images), torch.randn(3, 4, 8, 12, generator=chance)
    latents = autoencoder.latents(moments, noise)
    sample = moments.mean + moments.std * noise
    torch.testing.assert_close(latents * std[:, None, None] + mean[:, None, None], sample)
    one_level = (autoencoder.decode(latents).int() - plain.decode(sample).int()).abs()
    assert one_level.max() <= 1  # scaling and back rounds, and decoding truncates
    assert autoencoder.identity == plain.identity  # stored moments are unscaled


def test_statistics_that_do_not_fit_are_refused(tmp_path, folders, images):
    file = tmp_path / "stats.safetensors"
    autoencoder = build(Config(model=folders[0], factor=2, stats=str(file)))
    moments = autoencoder.encode(images)
    for mean, std, found in [
        (None, None, "found No such file"),
        (torch.zeros(3), torch.ones(3), r"found \{'mean': \(3,\).* for 4 channels"),
        (torch.zeros(4), torch.zeros(4), "found a channel without deviation"),
    ]:
        if mean is not None:
            write_stats(file, mean, std, {})
        with pytest.raises(RegscaleError, match=found):
            autoencoder.latents(moments, moments.mean)


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
