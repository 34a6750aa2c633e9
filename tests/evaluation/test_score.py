"""The evaluate command: figures with their origin, of runs and of pictures made elsewhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regscale.cluster import Cluster, join
from regscale.config import kinds, plugin
from regscale.errors import RegscaleError
from regscale.evaluate.__main__ import commands, main
from regscale.evaluation import report
from regscale.evaluation._references import read_reference
from regscale.evaluation.collecting import Place, features
from regscale.evaluation.compare import compare
from regscale.evaluation.pictures import of_npz, of_path, of_source
from regscale.evaluation.provenance import Making
from regscale.evaluation.suites._classes import labels_of
from tests.data.packing import index, pack
from tests.evaluation.test_extractors import extractor, weights  # noqa: F401
from tests.processes import Pool

SUITES = "regscale.evaluation.suites"


@pytest.fixture(scope="module")
def scored(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the tiny run."""
    out = tmp_path_factory.mktemp("scored")
    settings = ["num_samples=40", "--guidance-scale", "1.5", "--npz", "--device", "cpu"]
    main([str(run), "--suite", "digits", *settings, "--out", str(out)])
    return out


def test_a_suite_of_a_run_ends_in_figures_a_table_a_sheet_and_an_npz(scored: Path) -> None:
    names = {path.name for path in scored.iterdir()}
    assert names == {
        *("evaluation.json", "evaluation.txt", "images", "samples.npz"),
        *("figures.png", "sheet.png"),
    }
    found = report.read(scored)
    measured = [entry.name for entry in found.entries]
    assert measured == ["FD-digits", "IS", "precision", "recall", "KID", "label accuracy"]
    assert all(np.isfinite(entry.value) for entry in found.entries)
    assert all(entry.noise_floor is not None for entry in found.entries)
    assert {entry.noise_samples for entry in found.entries} == {299}  # half of the unseen digits
    text = (scored / "evaluation.txt").read_text()
    assert "noise floor" in text
    assert "guidance_scale          1.5" in text


ORIGIN = {
    *("sampler", "steps", "diffusion", "sampling", "guidance_scale", "guidance_interval"),
    *("token_guidance_scale", "token_guidance_interval", "labels", "seeds", "unit", "precision"),
    *("attention", "checkpoint", "ema", "regscale", "samples", "evaluator"),
}


def test_every_figure_says_all_of_its_origin(scored: Path, run: Path) -> None:
    for figure in json.loads((scored / "evaluation.json").read_text())["figures"]:
        told = {name for name, value in figure["provenance"].items() if value is not None}
        assert told >= ORIGIN
        origin = figure["provenance"]
        assert origin["checkpoint"].startswith("tiny step 60 ")
        assert len(origin["checkpoint"].split()[-1]) == 32  # of the manifest, an xxh3
        assert origin["guidance_scale"] == origin["token_guidance_scale"] == 1.5
        assert (origin["steps"], origin["ema"], origin["seeds"]) == ("3", 0.9, "0 to 39")


def test_the_npz_is_what_the_published_evaluator_reads(scored: Path) -> None:
    """guided-diffusion/evaluations/evaluator.py: obj["arr_0"], streamed as uint8 NHWC."""
    with np.load(scored / "samples.npz") as arrays:
        assert list(arrays) == ["arr_0"]
        samples = arrays["arr_0"]
    assert (samples.dtype, samples.shape) == (np.uint8, (40, 8, 8, 3))
    with Image.open(scored / "images" / "000007.png") as picture:
        assert np.array_equal(samples[7], np.array(picture))


@pytest.fixture(scope="module")
def packed(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of that evaluation in two indexed shards."""
    folder, paths = tmp_path_factory.mktemp("packed"), sorted((scored / "images").glob("*.png"))
    for number, part in enumerate((paths[:27], paths[27:])):
        samples = [(path.stem, {"png": path.read_bytes()}) for path in part]
        pack(folder / f"{number:05d}.tar", samples)
    index(folder)
    return folder


def test_pictures_made_elsewhere_give_the_same_figures(
    scored: Path, packed: Path, tmp_path: Path
) -> None:
    values = {entry.name: entry.value for entry in report.read(scored).entries}
    places = {
        "folder": [scored / "images"],
        "npz": [scored / "samples.npz"],
        "shards": [packed, "--size", "8"],
    }
    for name, place in places.items():
        out = tmp_path / name
        settings = ["--suite", "digits", "num_samples=40", "--device", "cpu"]
        main([*map(str, place), *settings, "--out", str(out)])
        found = report.read(out)
        assert {entry.name: entry.value for entry in found.entries} == values
        origin = found.entries[0].provenance
        assert origin["sampler"] is None
        assert len(origin["pictures"].split()[-1]) == 32


def test_a_reference_of_shards_is_that_of_the_same_folder(
    scored: Path, packed: Path, tmp_path: Path
) -> None:
    for name, place in {"folder": scored / "images", "shards": packed}.items():
        settings = ["--extractor", "digits", "--size", "8", "--keep", "10", "--device", "cpu"]
        main(["reference", str(place), *settings, "--out", str(tmp_path / f"{name}.npz")])
    folder, shards = (read_reference(tmp_path / f"{name}.npz") for name in ("folder", "shards"))
    assert folder.pool is not None
    assert shards.pool is not None
    assert torch.equal(folder.pool.mean, shards.pool.mean)
    assert torch.equal(folder.pool.covariance, shards.pool.covariance)
    assert torch.equal(*(torch.cat(list(each.images(10))) for each in (folder, shards)))


def test_shards_are_not_cropped_to_a_size_that_nobody_gave(packed: Path, tmp_path: Path) -> None:
    for command in (["reference", str(packed)], [str(packed), "--suite", "digits"]):
        with pytest.raises(RegscaleError, match=r"any size; found no --size.*Give it"):
            main([*command, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert of_path(packed, size=6).head(2).shape == (2, 3, 6, 6)
    with pytest.raises(RegscaleError, match="--size: is positive; found 0"):
        of_path(packed, size=0)


def collected(cluster: Cluster, folder: str) -> list[list[float]]:
    from regscale.data import digits as source

    real = of_source(source.build(source.Config(split="judge")), name="judge")
    made = features(extractor("digits"), real, Place(cluster=cluster, folder=Path(folder)))
    assert made.logits is not None
    return torch.cat([made.features, made.logits], dim=1).tolist()


@pytest.mark.distributed
def test_features_of_several_processes_are_those_of_one(pool: Pool, tmp_path: Path) -> None:
    alone = collected(join("cpu"), str(tmp_path))
    two = pool.run(2, collected, str(tmp_path))
    assert two == [alone, alone]
    assert not list(tmp_path.iterdir())


# pictures


def test_a_part_of_a_set_is_that_part(scored: Path) -> None:
    folder, npz = of_path(scored / "images"), of_npz(scored / "samples.npz")
    whole = torch.cat(list(folder.batches(size=7)))
    assert len(whole) == len(folder) == 40
    for pictures in (folder, npz):
        part = torch.cat(list(pictures.batches(range(13, 29), size=5)))
        assert torch.equal(part, whole[13:29])
    assert folder.digest() == npz.digest()


def test_pictures_of_different_sizes_are_refused(scored: Path, tmp_path: Path) -> None:
    shutil.copy(scored / "images" / "000000.png", tmp_path)
    Image.new("RGB", (9, 8)).save(tmp_path / "x.png")
    with pytest.raises(RegscaleError, match=r"x\.png: has another size .* found 9 x 8"):
        of_path(tmp_path).head(2)
    assert of_path(tmp_path, size=8).head(2).shape == (2, 3, 8, 8)
    with pytest.raises(RegscaleError, match="no such folder"):
        of_path(tmp_path / "none")


# labels


def test_labels_are_in_turn_or_by_chance() -> None:
    assert labels_of(12, 5, "balanced", seed=3) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    drawn = labels_of(5000, 5, "random", seed=3)
    assert drawn[:10] == labels_of(10, 5, "random", seed=3)
    assert drawn != labels_of(5000, 5, "random", seed=4)
    counts = np.bincount(drawn)
    assert counts.min() > 850  # 1000 expected, 28 its deviation
    assert len(counts) == 5


# ADM's suite on random weights in the published format


@pytest.mark.slow
def test_the_imagenet_suite_runs_on_weights_in_the_published_format(
    scored: Path,
    weights: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    extractor("inception", weights=str(weights))
    file = tmp_path / "reference.npz"
    made = ["--out", str(file), "--keep", "24", "--device", "cpu"]
    main(["reference", str(scored / "images"), f"weights={weights}", *made])
    with np.load(file) as arrays:
        assert set(arrays) == {"mu", "sigma", "mu_s", "sigma_s", "arr_0", "evaluator"}
        assert arrays["arr_0"].shape == (24, 8, 8, 3)
    settings = ["--suite", "imagenet256", f"references.all={file}", "num_samples=40"]
    inception = ["extractors.inception.kind=inception", f"extractors.inception.weights={weights}"]
    main([str(scored / "images"), *settings, *inception, "--out", str(tmp_path / "out")])
    found = report.read(tmp_path / "out")
    assert [e.name for e in found.entries] == ["FID", "sFID", "IS", "precision", "recall", "KID"]
    fid = found.entry("FID")
    assert fid is not None
    assert abs(fid.value) < 1e-6  # the pictures of the reference themselves
    assert fid.provenance["reference"].startswith("reference.npz-")


# comparison


def found(tmp_path: Path, name: str, value: float, **changes: object) -> report.Evaluation:
    from regscale.evaluation.metrics import Figure

    making = replace(Making(checkpoint=name, guidance_scale=1.5, labels="random"), **changes)
    figures = [
        Figure(name="FID", value=value, num_samples=9, evaluator="i", noise_floor=0.5),
        Figure(name="IS", value=value, num_samples=9, evaluator="i"),
    ]
    (tmp_path / name).mkdir()
    report.write(report.evaluation("imagenet256", making, figures), tmp_path / name)
    return report.read(tmp_path / name)


def test_alike_evaluations_are_ranked_by_what_is_better(tmp_path: Path) -> None:
    a, b = found(tmp_path, "a", 3.0), found(tmp_path, "b", 2.0)
    lines = compare([a, b]).splitlines()
    assert lines[0] == "FID (lower is better)"
    assert lines[1].startswith("  1  2.0000")
    assert lines[3] == "IS (higher is better)"
    assert lines[4].startswith("  1  3.0000")
    near = compare([a, found(tmp_path, "c", 2.9)])
    assert "the first two are 0.1 apart, less than the noise floor" in near


def test_the_table_says_why_a_figure_has_no_noise_floor(tmp_path: Path) -> None:
    held = found(tmp_path, "a", 3.0)
    assert "no noise floor          IS: not measured" in report.table(held)
    why = replace(held.entries[1], no_floor="the reference holds no pictures")
    told = report.table(replace(held, entries=(held.entries[0], why, replace(why, name="sFID"))))
    assert "no noise floor          IS, sFID: the reference holds no pictures" in told


@pytest.mark.parametrize(("name", "told"), [("FID", True), ("precision", False), ("FDr^2", False)])
def test_only_a_floor_near_zero_is_a_measure_of_a_gap(
    tmp_path: Path, name: str, told: bool
) -> None:
    pair = [found(tmp_path, "a", 0.7), found(tmp_path, "b", 0.6)]
    named = [replace(e, entries=(replace(e.entries[0], name=name),)) for e in pair]
    assert ("less than the noise floor" in compare(named)) is told


@pytest.mark.parametrize(
    ("field", "value"), [("labels", "balanced"), ("guidance_scale", 2.0), ("unit", 7), ("ema", 0.9)]
)
def test_what_differs_is_not_ranked_unless_told(tmp_path: Path, field: str, value: object) -> None:
    a, b = found(tmp_path, "a", 3.0), found(tmp_path, "b", 2.0, **{field: value})
    with pytest.raises(RegscaleError, match=f"they differ in {field}"):
        compare([a, b])
    assert f"not alike: {field} is" in compare([a, b], despite=[field])
    assert f"not alike: {field} is" in compare([a, b], anyway=True)


def test_the_command_compares_files(tmp_path: Path, scored: Path) -> None:
    main(["compare", str(scored), str(scored / "evaluation.json")])
    other = found(tmp_path, "other", 1.0)
    with pytest.raises(RegscaleError, match=r"(differ in sampler|finds no figure)"):
        main(["compare", str(scored), other.where])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(RegscaleError, match="is not the file of an evaluation"):
        main(["compare", str(tmp_path / "x.json"), str(scored)])


# the contract


@pytest.mark.parametrize("kind", kinds(SUITES))
def test_a_suite_defines_a_frozen_config_and_build(kind: str) -> None:
    module = plugin(SUITES, kind)
    assert module.Config.__dataclass_params__.frozen
    assert callable(module.build)


def test_commands_are_modules() -> None:
    assert {"compare", "reference", "score"} <= set(commands())
    with pytest.raises(RegscaleError, match="needs a run folder"):
        main([])
    with pytest.raises(RegscaleError, match="is neither a run folder nor pictures"):
        main(["nowhere", "--suite", "digits"])
    with pytest.raises(RegscaleError, match="Did you mean 'digits'"):
        main(["nowhere", "--suite", "digit"])
    with pytest.raises(RegscaleError, match="names a file of statistics"):
        main(["nowhere", "--suite", "imagenet256"])
