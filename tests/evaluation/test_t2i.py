"""Text-to-image: files of captions, GenEval's rules, and folders of the official scorers."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from regscale.cluster import join
from regscale.config import load_values
from regscale.data._scenes import Prompt
from regscale.data.shapecaps import prompts, truth
from regscale.errors import RegscaleError
from regscale.evaluate.__main__ import main
from regscale.evaluate._run import suite_of
from regscale.evaluation.collecting import Place
from regscale.evaluation.geneval import (
    Detected,
    Found,
    Task,
    correct,
    read_tasks,
    relations,
    scores,
)
from regscale.evaluation.layouts import write_dpg, write_geneval, write_hpsv2
from regscale.evaluation.pictures import Pictures, of_files
from regscale.evaluation.rates import wilson
from regscale.evaluation.shapecaps import Cell, Table
from regscale.evaluation.shapes import detect
from regscale.evaluation.suites import shapecaps, t2i
from regscale.sampling.pictures import to_picture

BOX = (10.0, 10.0, 20.0, 20.0)


def at(x: float, y: float) -> tuple[float, float, float, float]:
    return (x, y, x + 10, y + 10)


def test_geneval_relations_need_distance_and_a_direction() -> None:
    assert relations(at(0, 10), at(40, 10)) == {"left of"}
    assert relations(at(40, 10), at(0, 10)) == {"right of"}
    assert relations(at(0, 0), at(30, 30)) == {"left of", "above"}
    assert relations(at(0, 30), at(10, 0)) == {"below"}
    assert relations(at(0, 0), at(1, 1)) == set()
    assert relations(BOX, BOX) == set()


TWO = Task("position", "a dog right of a cat", (
    {"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]},
))  # fmt: skip
COUNTED = Task("counting", "two cups", ({"class": "cup", "count": 2},), (
    {"class": "cup", "count": 3},
))  # fmt: skip


def test_geneval_rules() -> None:
    cat, dog = Found(at(0, 0), "red"), Found(at(50, 0), "blue")
    assert correct({"cat": [cat], "dog": [dog]}, TWO)
    assert not correct({"cat": [dog], "dog": [cat]}, TWO)
    assert not correct({"dog": [dog]}, TWO)
    assert [correct({"cup": [cat] * n}, COUNTED) for n in (1, 2, 3)] == [False, True, False]
    red = Task("colors", "a red cat", ({"class": "cat", "count": 1, "color": "red"},))
    assert correct({"cat": [cat, dog]}, red)
    assert not correct({"cat": [dog, cat]}, red)  # only the most confident is looked at
    shares = scores([("a", True), ("a", False), ("b", True)])
    assert {name: rate.value for name, rate in shares.items()} == {
        "a": 0.5,
        "b": 1,
        "overall": 0.75,
    }
    assert shares["a"] == wilson(1, 2)


def seen_shapes(image: torch.Tensor) -> Detected:
    """The detector of ShapeCaps as GenEval's rules take one."""
    found: dict[str, list[Found]] = {}
    for each in detect(image[None])[0]:
        top, left, bottom, right = each.box
        found.setdefault(each.shape, []).append(Found((left, top, right, bottom), each.colour))
    return found


def as_task(prompt: Prompt) -> Task:
    """The first figure has its place relative to the second, which GenEval names first."""
    include: list[dict[str, object]] = []
    for group in reversed(prompt.groups):
        entry: dict[str, object] = {"class": group.shape, "count": group.number}
        include.append(entry | ({"color": group.colour} if group.colour else {}))
    if prompt.relation:
        include[1]["position"] = [f"{prompt.relation} of", 0]
    return Task(prompt.kind, prompt.text, tuple(include))


def test_the_suite_of_geneval_judges_by_any_detector(tmp_path: Path) -> None:
    sides = [p for p in prompts("position", number=12) if p.relation in ("left", "right")]
    wanted = [*prompts("color_attr", number=3), *sides[:3]]
    tasks = [as_task(each) for each in wanted]
    assert all("position" in task.include[1] for task in tasks[3:])
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text("".join(task.line() + "\n" for task in tasks))
    suite = suite_of("geneval", [f"metadata={metadata}", f"detector={__name__}:seen_shapes"])
    assert [each.text for each in suite.wanted(None)] == [
        each.text for each in wanted for _ in range(4)
    ]
    right = truth([each for each in wanted for _ in range(4)])
    mirrored = torch.cat([right[:12], right[12:].flip(3)])  # left is right
    for shown, value in ((right, 1.0), (mirrored, 0.5)):
        paths = [tmp_path / f"{number:06d}.png" for number in range(len(shown))]
        for path, image in zip(paths, shown, strict=True):
            to_picture(image).save(path)
        pictures = of_files(paths, name="drawn")
        found = suite.measure(pictures, Place(cluster=join("cpu"), folder=tmp_path)).figures
        figures = {figure.name: (figure.value, figure.num_samples) for figure in found}
        assert figures == {
            "GenEval color_attr": (1.0, 12),
            "GenEval position": (2 * value - 1, 12),
            "GenEval overall": (value, 24),
        }
    with pytest.raises(RegscaleError, match=r"4 pictures of each prompt.*found 20 of 24"):
        suite.measure(pictures.first(20), Place(cluster=join("cpu"), folder=tmp_path))


def test_a_detector_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(TWO.line())
    for name in ("regscale:nothing", "no.such.package:f", "regscale"):
        with pytest.raises(RegscaleError, match=f"detector: {name}: names a function"):
            suite_of("geneval", [f"metadata={tmp_path}/m.jsonl", f"detector={name}"])
    with pytest.raises(RegscaleError, match="detector: is needed; found none"):
        suite_of("geneval", [f"metadata={tmp_path}/m.jsonl"])
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(RegscaleError, match="is not GenEval's metadata; found ValueError"):
        read_tasks(tmp_path / "m.jsonl")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(8):
        picture = torch.full((3, 8, 8), 30 * number, dtype=torch.uint8)
        paths.append(tmp_path / f"{number:06d}.png")
        to_picture(picture).save(paths[-1])
    return paths


def test_the_folder_of_geneval(tmp_path: Path, images: list[Path]) -> None:
    """`evaluate_images.py` walks sorted folders, reads metadata.jsonl and samples/*.png."""
    write_geneval([TWO, COUNTED], images, tmp_path / "out")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["00000", "00001"]
    second = tmp_path / "out" / "00001"
    assert [p.name for p in sorted((second / "samples").iterdir())] == [
        *("0000.png", "0001.png", "0002.png", "0003.png")
    ]
    assert json.loads((second / "metadata.jsonl").read_text())["exclude"] == [
        {"class": "cup", "count": 3}
    ]
    assert (second / "samples" / "0002.png").read_bytes() == images[6].read_bytes()
    (tmp_path / "meta.jsonl").write_text(f"{TWO.line()}\n{COUNTED.line()}\n")
    assert read_tasks(tmp_path / "meta.jsonl") == [TWO, COUNTED]
    with pytest.raises(RegscaleError, match="GenEval: needs 4 pictures; found 8"):
        write_geneval([TWO], images, tmp_path)


def test_the_folders_of_dpg_and_hpsv2(tmp_path: Path, images: list[Path]) -> None:
    write_dpg(["12", "a"], images, tmp_path / "dpg")
    with Image.open(tmp_path / "dpg" / "a.png") as grid:
        assert grid.size == (16, 16)
        corners = [grid.getpixel(p) for p in ((0, 0), (8, 0), (0, 8), (8, 8))]
    assert corners == [(v, v, v) for v in (120, 150, 180, 210)]
    write_hpsv2(["anime", "photo", "anime"], images[:3], tmp_path / "hps")
    names = sorted(str(p.relative_to(tmp_path / "hps")) for p in (tmp_path / "hps").rglob("*.jpg"))
    assert names == ["anime/00000.jpg", "anime/00001.jpg", "photo/00000.jpg"]
    with pytest.raises(RegscaleError, match="has the styles"):
        write_hpsv2(["sketch"], images[:1], tmp_path)


def test_captions_of_coco_are_chosen_and_ordered_by_ids(tmp_path: Path) -> None:
    notes = [{"image_id": 1, "id": i, "caption": f"text {i} "} for i in range(5)]
    (tmp_path / "coco.json").write_text(json.dumps({"annotations": notes}))
    (tmp_path / "ids.txt").write_text("4\n1\n")
    config = t2i.Config(captions=f"{tmp_path}/coco.json", ids=f"{tmp_path}/ids.txt", seed=7)
    suite = t2i.build(config)
    assert [tuple(each) for each in suite.wanted(None)] == [("text 4", 7), ("text 1", 8)]
    assert suite.labels.startswith("captions coco.json ")
    assert ", ids.txt " in suite.labels
    (tmp_path / "mjhq.json").write_text('{"a1": {"prompt": "x", "category": "art"}}')
    assert t2i.captions_of(tmp_path / "mjhq.json", None) == ["x"]
    (tmp_path / "ids.txt").write_text("9")
    with pytest.raises(RegscaleError, match=r"cannot be read as captions; found KeyError\(9\)"):
        t2i.build(config)


def right(suite: shapecaps.ShapeCapsSuite, folder: Path) -> Pictures:
    paths = []
    for number, image in enumerate(truth(suite.prompts)):
        paths.append(folder / f"{number:06d}.png")
        to_picture(image).save(paths[-1])
    return of_files(paths, name="truth")


def test_right_pictures_score_one_in_the_suite_of_shapecaps(tmp_path: Path) -> None:
    suite = shapecaps.build(shapecaps.Config(num_prompts=4, kinds=("colors", "position")))
    assert len(suite.wanted(None)) == 16
    pictures = right(suite, tmp_path)
    found = suite.measure(pictures, Place(cluster=join("cpu"), folder=tmp_path))
    assert {figure.name: figure.value for figure in found.figures} == dict.fromkeys(
        [f"ShapeCaps {s} {r}" for s in ("seen", "held_out") for r in ("loose", "strict")], 1.0
    )
    assert "shuffled" in found.text
    assert (tmp_path / "prompts.png").exists()
    counts = Table.of(json.loads((tmp_path / shapecaps.COUNTS).read_text()))
    assert counts.cells["colors", "held_out"] == Cell(number=4, loose=4, strict=4, shuffled=0)
    assert counts.report() == found.text


def test_two_sets_of_right_pictures_are_the_noise_floor_of_shapecaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = shapecaps.build(shapecaps.Config(num_prompts=4, kinds=("colors",)))
    pictures, place = right(suite, tmp_path), Place(cluster=join("cpu"), folder=tmp_path)
    floors = {(f.noise_floor, f.noise_samples) for f in suite.measure(pictures, place).figures}
    assert floors == {(0.0, 4)}  # the detector makes no mistake

    def blind(prompts: list[Prompt], *, seed: int, size: int) -> torch.Tensor:
        return truth(prompts, seed=seed, size=size) * (1 - seed)  # the second set is black

    monkeypatch.setattr(shapecaps, "truth", blind)
    floors = {(f.noise_floor, f.noise_samples) for f in suite.measure(pictures, place).figures}
    assert floors == {(1.0, 4)}


def test_other_pictures_than_asked_for_are_refused(tmp_path: Path, images: list[Path]) -> None:
    place = Place(cluster=join("cpu"), folder=tmp_path)
    suite = shapecaps.build(shapecaps.Config(num_prompts=4, kinds=("colors",)))
    with pytest.raises(RegscaleError, match=r"32 pixels a side.*found 8 of 8 x 8 pixels; 8 prompt"):
        suite.measure(of_files(images, name="small"), place)
    with pytest.raises(RegscaleError, match=r"a picture of each caption.*found 8 pictures of 1"):
        captioned(tmp_path).measure(of_files(images, name="many"), place)


def captioned(folder: Path, **settings: object) -> t2i.TextToImage:
    (folder / "one.json").write_text('{"a1": {"prompt": "x", "category": "art"}}')
    values = {"captions": f"{folder}/one.json", "extractors": {"a": {"kind": "digits"}}}
    return t2i.build(load_values(t2i.Config, values | settings, "test"))


def test_data_that_are_not_there_are_told_before_anything_is_drawn(tmp_path: Path) -> None:
    for section in ("references", "held_out"):
        with pytest.raises(RegscaleError, match=r"absent\.npz"):
            captioned(tmp_path, **{section: {"all": f"{tmp_path}/absent.npz"}})


def test_pictures_for_the_empty_text_are_judged_by_the_captions() -> None:
    own, empty = (
        shapecaps.build(shapecaps.Config(num_prompts=4, kinds=("colors",), texts=texts))
        for texts in ("own", "empty")
    )
    assert empty.prompts == own.prompts
    assert {each.text for each in empty.wanted(None)} == {""}
    assert [each.seed for each in empty.wanted(None)] == [each.seed for each in own.wanted(None)]
    assert empty.labels != own.labels


def test_the_command_draws_a_benchmark_into_its_folder(run: Path, tmp_path: Path) -> None:
    """Any run will do: the tiny one reads names of digits as its prompts."""
    tasks = [Task("single_object", name, ({"class": name, "count": 1},)) for name in ("two", "six")]
    (tmp_path / "meta.jsonl").write_text("\n".join(task.line() for task in tasks))
    settings = ["--benchmark", "geneval", "--prompts", str(tmp_path / "meta.jsonl")]
    main(["layout", str(run), *settings, "--out", str(tmp_path / "out"), "--device", "cpu"])
    samples = sorted((tmp_path / "out" / "geneval").rglob("*.png"))
    assert len(samples) == 8
    assert len({path.read_bytes() for path in samples}) == 8
