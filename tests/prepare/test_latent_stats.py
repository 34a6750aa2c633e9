"""Statistics of latent channels: of posterior samples, over the run's own data, written once."""

import argparse
import json

import pytest
import torch
from safetensors import safe_open

from regscale import assemble
from regscale.autoencoders._stats import read_stats
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.prepare.latent_stats import add_arguments, run, sums, total
from regscale.recipe import RunConfig
from regscale.types import Moments
from tests.autoencoders.test_sd_vae import save_tiny


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_the_summary_is_that_of_many_drawn_samples():
    chance = torch.Generator().manual_seed(0)
    shift = torch.tensor([3.0, -1.0]).reshape(2, 1, 1)
    mean = torch.randn(24, 2, 4, 4, generator=chance) * 2 + shift
    std = torch.rand(24, 2, 4, 4, generator=chance)
    parts = [Moments(mean[:16], std[:16]), Moments(mean[16:], std[16:])]
    found = total(map(sums, parts))
    drawn = mean + std * torch.randn(2000, *mean.shape, generator=chance)
    drawn = drawn.movedim(2, 0).flatten(1).double()  # (C, all)
    assert found.num_samples == 24
    # 768,000 draws a channel: a standard error of the mean of 2 / 876
    torch.testing.assert_close(found.mean, drawn.mean(1), rtol=0, atol=0.01)
    torch.testing.assert_close(found.std, drawn.std(1), rtol=0, atol=0.01)


def test_a_file_made_by_the_command_standardises_the_runs_latents(tiny_file, tmp_path):
    model = save_tiny(tmp_path / "vae", 0)
    tower = f"autoencoder={{kind: sd_vae, model: {model}, decoder: null, factor: 2}}"
    out = tmp_path / "made" / "stats.safetensors"
    words = [tiny_file, tower, "--out", out, "--num-samples", 50, "--batch-size", 16]
    run(parsed(*words, "--num-workers", 0))
    stats = read_stats(str(out), 4)
    with safe_open(out, "pt") as file:
        facts = file.metadata()
    assert facts["num_samples"] == "50"
    assert json.loads(facts["autoencoder"])["model"] == model
    config = load(RunConfig, tiny_file, [tower, f"autoencoder.stats={out}"])
    pieces = assemble.pieces(config)
    images = pieces.source.read(range(400), range(400)).images
    moments = pieces.autoencoder.encode(images)
    noise = torch.randn(moments.mean.shape, generator=torch.Generator().manual_seed(0))
    latents = pieces.autoencoder.latents(moments, noise)
    # 50 of 1,198 digits stand for these 400
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.1)
    assert (stats.std > 0).all()


def test_a_file_that_is_there_is_never_replaced(tiny_file, tmp_path):
    out = tmp_path / "stats.safetensors"
    out.write_bytes(b"kept")
    with pytest.raises(RegscaleError, match=r"exists, and a trained run may depend on it"):
        run(parsed(tiny_file, "--out", out))
    assert out.read_bytes() == b"kept"
    with pytest.raises(RegscaleError, match="are positive; found 0, 32"):
        run(parsed(tiny_file, "--out", tmp_path / "new", "--num-samples", 0))
