"""FDr: each encoder's distance in units of held-out real data, and the average over encoders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from regscale.cluster import join
from regscale.config import load_layers
from regscale.data import digits as source
from regscale.errors import RegscaleError
from regscale.evaluation._references import file_digest, write_reference
from regscale.evaluation.collecting import Place
from regscale.evaluation.extractors import collect
from regscale.evaluation.metrics import Figure, frechet_distance_of, gaussian_of
from regscale.evaluation.pictures import Pictures, of_files, of_path, of_source
from regscale.evaluation.suites import imagenet256, t2i
from regscale.sampling.pictures import to_picture
from tests.evaluation.test_extractors import clip, dinov2, extractor  # noqa: F401

REAL = of_source(source.build(source.Config(split="judge")), name="judge").first(150)
OTHER = of_source(source.build(source.Config(split="train")), name="train")


def written(folder: Path, images: Iterator[torch.Tensor]) -> Pictures:
    folder.mkdir()
    for number, image in enumerate(torch.cat(list(images))):
        to_picture(image).save(folder / f"{number:04d}.png")
    return of_path(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference with pictures, held-out digits, and digits that are judged: inverted ones."""
    folder = tmp_path_factory.mktemp("data")
    write_reference(folder / "reference.npz", images=REAL.batches(), image_shape=REAL.shape)
    written(folder / "held_out", OTHER.batches(range(100)))
    written(folder / "made", (255 - batch for batch in OTHER.batches(range(100, 160))))
    return folder


@pytest.fixture(scope="module")
def encoders(dinov2: Path, clip: Path) -> dict[str, Any]:  # noqa: F811
    return {
        "digits": {"kind": "digits"},
        "vit": {"kind": "dinov2", "model": str(dinov2), "size": 28},
        "clip": {"kind": "clip", "model": str(clip)},
    }


def measured(
    data: Path, encoders: dict[str, Any], held_out: dict[str, str], made: str = "made"
) -> dict[str, Figure]:
    values = {
        "extractors": encoders,
        "references": {"all": str(data / "reference.npz")},
        "held_out": held_out,
    }
    suite = imagenet256.build(load_layers(imagenet256.Config, [("test", values)]))
    place = Place(cluster=join("cpu"), folder=data)
    return {each.name: each for each in suite.measure(of_path(data / made), place).figures}


@pytest.fixture(scope="module")
def found(data: Path, encoders: dict[str, Any]) -> dict[str, Figure]:
    return measured(data, encoders, {"all": str(data / "held_out")})


def test_an_encoders_fdr_is_its_distance_in_units_of_held_out_data(
    data: Path, encoders: dict[str, Any], found: dict[str, Figure]
) -> None:
    for name, kind in (("digits", "digits"), ("vit", "dinov2"), ("clip", "clip")):
        settings = {key: value for key, value in encoders[name].items() if key != "kind"}
        made, real, beside = (
            gaussian_of(collect(extractor(kind, **settings), each.batches()).features)
            for each in (of_path(data / "made"), REAL, of_path(data / "held_out"))
        )
        distance = frechet_distance_of(made, real)
        ratio = distance / frechet_distance_of(beside, real)
        # sums over processes and batches round differently
        assert found[f"FD-{kind}"].value == pytest.approx(distance, rel=1e-4)
        assert found[f"FDr-{kind}"].value == pytest.approx(ratio, rel=1e-4)
        assert ratio > 1.5  # inverted digits are farther than digits


def test_fdr_of_k_is_the_average_and_names_all_encoders_and_the_held_out_data(
    data: Path, found: dict[str, Figure]
) -> None:
    each = [found[f"FDr-{kind}"] for kind in ("digits", "dinov2", "clip")]
    whole = found["FDr^3"]
    assert whole.value == pytest.approx(sum(one.value for one in each) / 3, rel=1e-12)
    assert whole.evaluator == " + ".join(one.evaluator for one in each)
    identity = f"reference.npz-{file_digest(data / 'reference.npz')}"
    beside = f"held_out-{of_path(data / 'held_out').digest()}"
    assert {one.reference for one in (*each, whole)} == {f"{identity}; held out {beside}"}
    assert (whole.noise_floor, whole.num_samples) == (1.0, 60)
    assert "CMMD" in found


def test_held_out_data_themselves_have_an_fdr_of_one(data: Path, encoders: dict[str, Any]) -> None:
    two = {name: encoders[name] for name in ("vit", "clip")}
    found = measured(data, two, {"all": str(data / "held_out")}, made="held_out")
    assert [found[name].value for name in found if name.startswith("FDr")] == [1, 1, 1]


def test_two_of_one_kind_are_told_apart_by_their_names(
    data: Path, encoders: dict[str, Any]
) -> None:
    two = {"small": encoders["vit"], "large": encoders["vit"] | {"size": 42}}
    found = measured(data, two, {"all": str(data / "held_out")})
    assert list(found) == [
        *("FD-dinov2 small", "FD-dinov2 large"),
        *("FDr-dinov2 small", "FDr-dinov2 large", "FDr^2"),
    ]


def test_a_target_named_clip_is_no_clip(data: Path, clip: Path) -> None:  # noqa: F811
    target = {"kind": "clip", "model": str(clip), "size": 28}
    found = measured(data, {"a": {"kind": "target", "target": target}}, {})
    assert list(found) == ["FD-clip_target"]


def test_held_out_statistics_of_a_file_give_the_figures_of_the_pictures(
    data: Path, encoders: dict[str, Any], found: dict[str, Figure], tmp_path: Path
) -> None:
    own = collect(extractor("digits"), of_path(data / "held_out").batches())
    write_reference(tmp_path / "own.npz", pool=gaussian_of(own.features), evaluator=own.evaluator)
    alone = {"digits": encoders["digits"]}
    again = measured(data, alone, {"digits": str(tmp_path / "own.npz")})
    assert again["FDr-digits"].value == again["FDr^1"].value == found["FDr-digits"].value


def test_held_out_data_that_are_missing_or_the_reference_itself_are_refused(
    data: Path, encoders: dict[str, Any]
) -> None:
    reference = str(data / "reference.npz")
    with pytest.raises(RegscaleError, match=r"held_out\.digits: is other data than the reference"):
        measured(data, {"digits": encoders["digits"]}, {"all": reference})
    with pytest.raises(RegscaleError, match=r"held_out\.vit: is needed .* found digits"):
        measured(data, {"vit": encoders["vit"]}, {"digits": str(data / "held_out")})


def test_captions_are_judged_by_fdr_too_and_by_clip_score_with_its_floor(
    data: Path, encoders: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "captions.jsonl").write_text('{"prompt": "a digit"}\n' * 50)
    values = {
        "captions": str(tmp_path / "captions.jsonl"),
        "extractors": {name: encoders[name] for name in ("vit", "clip")},
        "references": {"vit": str(data / "reference.npz")},
        "held_out": {"vit": str(data / "held_out")},
        "captioned": str(data / "held_out"),
    }
    suite = t2i.build(load_layers(t2i.Config, [("test", values)]))
    place = Place(cluster=join("cpu"), folder=tmp_path)
    pictures = of_path(data / "made").first(50)
    found = {each.name.split(" ")[0]: each for each in suite.measure(pictures, place).figures}
    assert list(found) == ["FD-dinov2", "FDr-dinov2", "FDr^1", "CLIPScore"]
    score = found["CLIPScore"]
    assert score.noise_floor is not None
    assert score.noise_floor > 0
    assert score.noise_samples == 25
    few = of_files(sorted((data / "made").iterdir())[:9], name="few")
    written(tmp_path / "few", few.batches())
    values |= {"captioned": str(tmp_path / "few")}
    suite = t2i.build(load_layers(t2i.Config, [("test", values)]))
    with pytest.raises(RegscaleError, match="found 9 pictures of 50 captions"):
        suite.measure(pictures, place)
