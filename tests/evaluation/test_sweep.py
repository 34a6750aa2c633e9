"""The search for guidance finds a known optimum within its budget, and its plot."""

import json
from pathlib import Path

import pytest
from PIL import Image

from regscale.errors import RegscaleError
from regscale.evaluate.__main__ import main
from regscale.evaluation.sweep import Guidance, Point, best, search


def bowl(guidance: Guidance) -> Point:
    """Best at scale 1.8 on [0.2, 0.8]."""
    scale, low, high = guidance
    distance = 2 + (scale - 1.8) ** 2 + (low - 0.2) ** 2 + (high - 0.8) ** 2
    return Point(guidance=guidance, distance=distance, score=None)


def test_the_search_finds_the_interval_and_closes_in_on_the_scale() -> None:
    found = search(bowl, budget=24)
    assert len(found) <= 24
    scale, *interval = best(found).guidance
    assert interval == [0.2, 0.8]
    assert abs(scale - 1.8) < 0.1


@pytest.mark.parametrize("budget", [1, 5, 9, 13])
def test_a_budget_is_kept(budget: int) -> None:
    found = search(bowl, budget=budget)
    assert len(found) == len({point.guidance for point in found}) == budget


def test_the_command_writes_figures_and_a_plot(run: Path, tmp_path: Path) -> None:
    settings = ["--suite", "digits", "num_samples=16", "--budget", "3", "--scales", "1", "2"]
    arguments = [*settings, "--intervals", "0,1", "0.2,0.8", "--device", "cpu"]
    main(["sweep", str(run), *arguments, "--unit", "16", "--out", str(tmp_path)])
    points = json.loads((tmp_path / "sweep.json").read_text())
    assert [p["guidance"]["scale"] for p in points[:2]] == [1.0, 2.0]
    assert points[2]["guidance"]["low"] == 0.2
    assert all(p["distance"] > 0 and p["score"] >= 1 for p in points)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (640, 720)
        assert len(set(picture.get_flattened_data())) > 4
    with pytest.raises(RegscaleError, match="are pairs of times"):
        main(["sweep", str(run), *settings, "--intervals", "0.2"])
