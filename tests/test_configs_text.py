"""Text to image is the program of the ImageNet runs: its configs differ in a few lines."""

from pathlib import Path

import pytest

from regscale import assemble
from regscale.config import load, to_values
from regscale.prepare._aspects import sizes_of_area
from regscale.recipe import RunConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def lines(name: str) -> list[str]:
    """What a config says itself, without comments."""
    text = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    return [line for line in text if line.strip() and not line.startswith("#")]


def test_a_text_config_is_at_most_twelve_lines_over_the_imagenet_one() -> None:
    said = lines("t2i")
    assert said[0] == "defaults: [imagenet_sit_xl.yaml]"
    assert len(said) <= 12
    from_weights = lines("t2i_from_imagenet")
    assert from_weights[0] == said[0]
    assert len(from_weights) <= 12
    for name in ("t2i_small", "t2i_2b"):
        assert lines(name)[0] == "defaults: [t2i.yaml]"
        assert len(lines(name)) <= 12


def test_what_a_text_changes_and_what_it_leaves() -> None:
    image, text = (
        to_values(load(RunConfig, CONFIGS / f"{name}.yaml")) for name in ("imagenet_sit_xl", "t2i")
    )
    changed = {key for key in image if image[key] != text[key]}
    assert changed == {
        "name", "data", "conditioning", "model", "times", "optimizer", "training", "sampling"
    }  # fmt: skip
    differing = [k for k in image["model"] if image["model"][k] != text["model"][k]]
    assert sorted(differing) == ["qk_norm", "qk_norm_kind", "rope"]


def test_the_run_that_starts_from_classes_has_every_weight_of_theirs_but_the_labels() -> None:
    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        model = assemble.pieces(load(RunConfig, CONFIGS / f"{name}.yaml")).model
        return {key: tuple(value.shape) for key, value in model.state_dict().items()}

    image, text = shapes("imagenet_sit_xl"), shapes("t2i_from_imagenet")
    assert {key for key in image if text.get(key) != image[key]} == {
        "y_embedder.embedding_table.weight"
    }
    added = {key for key in text if key not in image}
    assert all(".attn.txt_" in key or key.startswith("txt_embedder.") for key in added)


def test_buckets_at_512_pixels_go_on_from_the_weights_at_256() -> None:
    base, config = (load(RunConfig, CONFIGS / f"{name}.yaml") for name in ("t2i", "t2i_512"))
    values = to_values(base), to_values(config)
    changed = {key for key in values[0] if values[0][key] != values[1][key]}
    assert changed == {"name", "init_from", "data", "times", "training", "sampling"}
    made = assemble.pieces(config)
    assert made.source.image_size == (512, 512)
    sizes = sizes_of_area(512, step=64, max_aspect=2.0)
    assert made.noise_shapes.buckets == {(h, w): (4, h // 8, w // 8) for h, w in sizes}
    for height, width in sizes:  # DINOv2's patches are those of the backbone, at every size
        assert made.targets["dinov2"].grid(height, width) == (height // 16, width // 16)
    before, after = (
        {n: p.shape for n, p in each.model.named_parameters()}
        for each in (assemble.pieces(base), made)
    )
    assert before == after
    assert config.times.at(64, 64).shift == config.sampling.shift == 2.0


@pytest.mark.parametrize(
    ("name", "base", "parameters"),
    [("t2i", "imagenet_sit_xl", 0.164), ("t2i_small", "imagenet_sit_l", 0.169)],
)
def test_what_a_text_costs_in_parameters(name: str, base: str, parameters: float) -> None:
    def count(config: str) -> int:
        model = assemble.pieces(load(RunConfig, CONFIGS / f"{config}.yaml")).model
        every = sum(p.numel() for p in [*model.parameters(), *model.buffers()])
        return int(every - sum(p.numel() for p in model.projectors.parameters()))

    assert count(name) / count(base) - 1 == pytest.approx(parameters, abs=0.0006)
