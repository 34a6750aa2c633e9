"""The plots of an evaluation show the figures that it has."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from regscale.evaluate.__main__ import main
from regscale.evaluation import bars, over_steps, report, sheet
from regscale.evaluation.metrics import Figure
from regscale.evaluation.provenance import Making

MAKING = Making(checkpoint="tiny step 60 ab", labels="balanced")
FIGURES = [
    Figure(name="FID", value=4.0, num_samples=9, evaluator="i", noise_floor=1.0, spread=0.5),
    Figure(name="IS", value=9.0, num_samples=9, evaluator="i", noise_floor=0.0),
    Figure(name="CLIPScore", value=30.0, num_samples=9, evaluator="c", no_floor="no pairs"),
]
FOUND = report.evaluation("t2i", MAKING, FIGURES)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into pictures."""
    told: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, place: object, words: str, **options: object) -> None:
        told.append(words)
        draw(self, place, words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return told


def widths(picture: Image.Image, colour: tuple[int, int, int]) -> list[int]:
    """Of the bars of a colour from above, in pixels."""
    rows = (np.array(picture)[bars.TOP :] == colour).all(2).sum(1)
    rows[rows <= bars.BAR // 8] = 0  # letters, and a floor of 0
    return [int(row) for before, row in pairwise([0, *rows]) if row > 0 == before]


def test_bars_are_as_long_as_figures_and_floors(texts: list[str]) -> None:
    picture = bars.bars(FOUND)
    assert {"FID", "IS", "CLIPScore", "4 ± 0.5", "1", "9", "0", "30"} < set(texts)
    assert "none: no pairs" in texts
    assert texts.count("higher is better") == 2
    fid, *others = widths(picture, (0x1F, 0x77, 0xB4))
    assert fid == pytest.approx(bars.BAR * 4 / 4.5, abs=2)  # the scale ends where the spread does
    assert others == pytest.approx([bars.BAR, bars.BAR], abs=2)
    (floor,) = widths(picture, (0x9A, 0x9A, 0x9A))
    assert floor == pytest.approx(bars.BAR / 4.5, abs=2)


def test_a_bar_of_what_is_negative_ends_at_zero() -> None:
    below = replace(FOUND.entries[0], name="KID", value=-1.0, noise_floor=1.0, spread=None)
    picture = bars.bars(replace(FOUND, entries=(below,)))
    (made,), (real,) = (
        widths(picture, colour) for colour in ((0x1F, 0x77, 0xB4), (0x9A, 0x9A, 0x9A))
    )
    assert made == pytest.approx(bars.BAR / 2, abs=2)
    assert real == pytest.approx(bars.BAR / 2, abs=2)


def at(step: int, value: float, **changes: object) -> report.Evaluation:
    making = replace(MAKING, checkpoint=f"tiny step {step}", **changes)
    return report.evaluation("small", making, [replace(FIGURES[0], value=value), FIGURES[1]])


def test_figures_over_steps_are_those_of_alike_evaluations(texts: list[str]) -> None:
    others = [at(20, 8.0), at(40, 6.0), at(50, 99.0, guidance_scale=3.0)]
    (fid, score) = over_steps.charts(FOUND, others).items()
    floor = [(20, 1.0), (60, 1.0)]
    values = [(20, 8.0), (40, 6.0), (60, 4.0)]
    assert fid == ("t2i: FID", {"value": values, "noise floor": floor})
    assert score == ("t2i: IS", {"value": [(20, 9.0), (40, 9.0), (60, 9.0)]})
    picture = over_steps.over_steps(FOUND, others)
    assert picture is not None
    assert picture.size == (1280, 360)
    assert {"t2i: FID", "t2i: IS", "noise floor", "step", "20", "60"} < set(texts)


def test_one_step_alone_is_not_plotted() -> None:
    assert over_steps.over_steps(FOUND, [FOUND, at(20, 8.0, labels="random")]) is None
    elsewhere = report.evaluation("t2i", Making(pictures="x"), FIGURES)
    assert over_steps.over_steps(elsewhere, [FOUND]) is None


def test_the_command_plots_a_run_beside_its_figures(
    run: Path, tmp_path: Path, texts: list[str]
) -> None:
    own = tmp_path / "tiny"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("evaluations"))
    settings = ["--suite", "digits", "num_samples=16", "--device", "cpu"]
    main([str(own), *settings])
    (first,) = (own / "evaluations").iterdir()
    files = {"evaluation.json", "evaluation.txt", "images", "sheet.png", "figures.png"}
    assert {path.name for path in first.iterdir()} == files
    assert {"FD-digits", "IS", "precision", "recall", "KID", "label accuracy"} < set(texts)
    earlier = own / "evaluations" / "during-00000020" / "small"
    earlier.mkdir(parents=True)
    told = (first / "evaluation.json").read_text().replace("tiny step 60", "tiny step 20")
    (earlier / "evaluation.json").write_text(told)
    (earlier.parent / "evaluation.json").write_text("{")  # another's fault is not this one's
    main([str(own), *settings])
    assert {path.name for path in first.iterdir()} == files | {"steps.png"}
    with Image.open(first / "steps.png") as picture:
        assert picture.size == (1280, 1080)  # six figures
    with Image.open(first / "sheet.png") as picture:
        assert picture.width == 8 * (sheet.SIDE + sheet.GAP) + sheet.GAP
        assert picture.height == 2 * (sheet.SIDE + sheet.LINE + sheet.GAP) + sheet.GAP


def test_a_caption_that_is_cut_says_so(texts: list[str]) -> None:
    image = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    made = sheet.captioned(image, ["two green circles below " * 9])
    lines = [text for text in texts if text]
    assert len(lines) == sheet.LINES
    assert lines[-1].endswith(" ...")
    assert made.height == 2 * sheet.GAP + 96 + sheet.LINES * sheet.LINE
