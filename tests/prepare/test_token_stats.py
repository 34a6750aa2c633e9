"""Statistics of entangled tokens: over the run's own data, kept with the weights."""

import argparse
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regscale import assemble
from regscale.cluster import Cluster
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.prepare.token_stats import NOTHING, add_arguments, moments, run
from regscale.recipe import RunConfig
from regscale.representations._stats import read_stats, write_stats
from regscale.training import train
from regscale.training.loop import open_loader
from tests.conftest import MakeConfig
from tests.processes import Pool


def parsed(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def overrides(file: Path) -> list[str]:
    return ["entangle.vit.normalisation=stats", f"entangle.vit.stats={file}"]


def test_moments_are_those_of_all_tokens_together() -> None:
    g = torch.Generator().manual_seed(0)
    tokens = 1000 + torch.randn(30, 2, 5, generator=g) * torch.tensor([1.0, 2, 3, 0.1, 0])
    found = NOTHING
    for part in tokens.split((7, 20, 3)):
        found = found.merge(moments(part)).merge(NOTHING)
    rows = tokens.flatten(0, 1).double()
    assert found.num_tokens == 60
    torch.testing.assert_close(found.mean, rows.mean(0))
    torch.testing.assert_close(found.std[:4], rows.std(0, correction=0)[:4])
    assert float(found.std[4]) == 1  # which never varies


def test_a_file_made_by_the_command_standardises_tokens_and_stays_with_the_weights(
    tiny: MakeConfig, tiny_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "made" / "vit.safetensors"
    words = [*overrides(file), "--num-samples", 300, "--batch-size", 64, "--num-workers", 0]
    run(parsed(tiny_file, *words))
    job = assemble.job(tiny(*overrides(file), "training.batch_size=300"))
    batch = next(open_loader(job, 0))
    assert batch.images is not None
    raw = job.towers.targets["vit"](batch.images).tokens
    made = job.towers.encode(batch).clean.tokens[0]
    assert float(made.mean((0, 1)).abs().max()) < 1e-4  # the very samples that were measured
    torch.testing.assert_close(made.std((0, 1), correction=0), torch.ones(48), rtol=0, atol=1e-4)
    torch.testing.assert_close(job.towers.normalisations[0].restore(made), raw, rtol=0, atol=1e-4)


def measured(cluster: Cluster, module: str, words: list[object]) -> None:
    """A command as one of several processes."""
    command = import_module(f"regscale.prepare.{module}")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(word) for word in words]))


@pytest.mark.distributed
@pytest.mark.parametrize("module", ["token_stats", "latent_stats"])
def test_processes_see_their_parts_and_write_what_one_writes(
    tiny_file: Path, tmp_path: Path, pool: Pool, module: str
) -> None:
    """77 samples in batches of 16: the third process has no part in the last turn."""
    files = [tmp_path / f"{ranks}.safetensors" for ranks in (1, 3)]
    for file, ranks in zip(files, (1, 3), strict=True):
        out = overrides(file) if module == "token_stats" else ["--out", file]
        shape = ["--num-samples", 77, "--batch-size", 16, "--num-workers", 0]
        pool.run(ranks, measured, module, [tiny_file, *out, *shape])
    one, three = map(load_file, files)
    assert one.keys() == three.keys() == {"mean", "std"}
    for name in one:
        torch.testing.assert_close(three[name], one[name], rtol=1e-6, atol=1e-7)


def test_a_run_goes_on_and_draws_without_the_file(tiny: MakeConfig, tmp_path: Path) -> None:
    """Statistics are read once: a checkpoint brings them back, not the file."""
    file, g = tmp_path / "vit.safetensors", torch.Generator().manual_seed(0)
    mean, std = torch.randn(48, generator=g), torch.rand(48, generator=g) + 0.5
    write_stats(file, mean, std, {})
    train(assemble.job(tiny(*overrides(file), "training.num_steps=4")))
    file.unlink()
    job = assemble.job(tiny(*overrides(file), "training.num_steps=6"))
    assert train(job).step == 6
    loaded = assemble.trained(job.folder, device="cpu")
    for model in (job.engine.model, loaded.sampler.model):
        assert torch.equal(model.stats_of(0)[0], mean)
        assert torch.equal(model.stats_of(0)[1], std)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    raw = loaded.towers.targets["vit"](images).tokens
    torch.testing.assert_close(loaded.towers.tokens(images, [True])[0], (raw - mean) / std)


def test_a_run_without_the_file_and_without_a_checkpoint_says_how_to_make_it(
    tiny: MakeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "none.safetensors"
    with pytest.raises(RegscaleError, match=r"tiny: entangle\.vit\.stats: .*none\.saf") as caught:
        assemble.job(tiny(*overrides(file)))
    assert caught.value.fix == "Make it with python -m regscale.prepare token-stats CONFIG."
    write_stats(file, torch.zeros(5), torch.ones(5), {})
    with pytest.raises(RegscaleError, match=r"\(5,\).* for tokens of width 48"):
        read_stats(str(file), 48, where="here")


def test_what_cannot_be_measured_is_said_at_once(tiny_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="has no target whose normalisation is 'stats'"):
        run(parsed(tiny_file))
    with pytest.raises(RegscaleError, match="are positive; found 0, 128"):
        run(parsed(tiny_file, "--num-samples", 0))
    file = tmp_path / "kept"
    file.write_bytes(b"kept")
    with pytest.raises(RegscaleError, match="exists, and a trained run may depend on it"):
        run(parsed(tiny_file, *overrides(file)))
    assert file.read_bytes() == b"kept"


@pytest.mark.parametrize(
    "wrong", ["entangle.vit.normalisation=stats", "entangle.vit.stats=file.safetensors"]
)
def test_a_file_and_its_normalisation_go_together(tiny_file: Path, wrong: str) -> None:
    with pytest.raises(RegscaleError, match=r"entangle\.vit\.stats: is a file where"):
        load(RunConfig, tiny_file, [wrong])
