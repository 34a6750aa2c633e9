"""Every config counts what it would train, and each ablation differs from its base in its row."""

from pathlib import Path

import pytest

from regscale import assemble
from regscale.config import kind_of, load, to_values
from regscale.describe import dry_run
from regscale.recipe import RunConfig

CONFIGS = Path(__file__).parents[1] / "configs"
WHOLE = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "parts")
PARTS = ["sdxl_vae", "sd3_vae", "flux_vae", "e2e_vae", "dc_ae"]
CHANGED = {
    "sit": {"targets", "entangle", "align"},
    "repa": {"entangle"},
    "token_only": {"align"},
    "mean_patch": {"targets"},
    "clip_token": {"targets", "entangle", "align"},
    "dinov2_l": {"targets"},
    "alignment_depth": {"align"},
    "token_weight": {"entangle"},
    "learnable_token": {"entangle", "model"},
}


@pytest.mark.parametrize("path", WHOLE, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_config_runs_dry_and_says_its_parameters(path: Path) -> None:
    lines = list(dry_run(load(RunConfig, path)))
    count = lines[0].split()[1]
    stated = [line for line in path.read_text().splitlines() if line.startswith("# Parameters")]
    assert all(count in line for line in stated), count


def test_every_ablation_is_listed_here() -> None:
    assert {path.stem for path in (CONFIGS / "ablations").iterdir()} == set(CHANGED)


@pytest.mark.parametrize(("name", "sections"), CHANGED.items())
def test_an_ablation_changes_its_own_sections_alone(name: str, sections: set[str]) -> None:
    base = to_values(load(RunConfig, CONFIGS / "imagenet_sit_b.yaml"))
    values = to_values(load(RunConfig, CONFIGS / "ablations" / f"{name}.yaml"))
    assert {key for key in base if base[key] != values[key]} == {"name", *sections}


def test_what_the_ablations_train() -> None:
    def made(name: str) -> tuple[list[tuple[int, int]], list[int]]:
        pieces = assemble.pieces(load(RunConfig, CONFIGS / "ablations" / f"{name}.yaml"))
        return list(pieces.token_shapes), [part.depth for part in pieces.model.parts.aligned]

    assert made("sit") == ([], [])
    assert made("repa") == made("learnable_token") == ([], [4])
    assert made("token_only") == ([(1, 768)], [])
    assert made("mean_patch") == ([(1, 768)], [4])
    assert made("clip_token") == ([(1, 1024)], [4])
    assert made("dinov2_l") == ([(1, 1024)], [4])
    assert made("alignment_depth") == ([(1, 768)], [8])


def test_at_512_pixels_patches_and_latents_have_one_grid() -> None:
    pieces = assemble.pieces(load(RunConfig, CONFIGS / "imagenet512_sit_xl.yaml"))
    assert pieces.latent_shape == (4, 64, 64)
    assert pieces.targets["dinov2"].grid(512, 512) == pieces.model.grid == (32, 32)


@pytest.mark.parametrize("part", PARTS)
def test_an_autoencoder_part_goes_over_a_run(part: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    files = [CONFIGS / "imagenet_sit_b.yaml", CONFIGS / "parts" / f"{part}.yaml"]
    path.write_text(f"defaults: [{', '.join(map(str, files))}]\nname: {part}\n")
    config = load(RunConfig, path)
    pieces = assemble.pieces(config)
    assert kind_of(config.autoencoder) == ("dc_ae" if part == "dc_ae" else "sd_vae")
    channels, side, _ = pieces.latent_shape
    assert (channels, side) == {
        "sdxl_vae": (4, 32),
        "sd3_vae": (16, 32),
        "flux_vae": (16, 32),
        "e2e_vae": (32, 16),
        "dc_ae": (32, 8),
    }[part]
    assert config.model.patch_size == (1 if part in {"e2e_vae", "dc_ae"} else 2)
