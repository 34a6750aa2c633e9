"""Statistics of a file serve the extractor that made them; pictures beside them serve any."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regscale.cluster import Cluster
from regscale.data import digits as source
from regscale.errors import RegscaleError
from regscale.evaluation._references import read_reference, write_reference
from regscale.evaluation.collecting import Place
from regscale.evaluation.extractors import collect, digits
from regscale.evaluation.judging import _clip, figures
from regscale.evaluation.metrics import Gaussian, gaussian_of
from regscale.evaluation.pictures import of_source
from regscale.evaluation.real import View, reference

ALONE = Cluster(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
REAL = of_source(source.build(source.Config(split="judge")), name="judge")


def distance(file: Path) -> float:
    """Of the judge's digits from a file's statistics or pictures."""
    place = Place(cluster=ALONE, folder=file.parent)
    extractor = digits.build(digits.Config())
    found, _ = figures({"digits": extractor}, {"all": reference(str(file))}, REAL, place)
    return next(each.value for each in found if each.name == "FD-digits")


def test_statistics_serve_the_extractor_that_made_them(tmp_path: Path) -> None:
    file = tmp_path / "own.npz"
    own = collect(digits.build(digits.Config()), REAL.batches())
    write_reference(file, pool=gaussian_of(own.features), evaluator=own.evaluator)
    assert read_reference(file).evaluator == own.evaluator
    assert abs(distance(file)) < 1e-6


def test_statistics_of_another_extractor_are_refused(tmp_path: Path) -> None:
    file, width = tmp_path / "other.npz", digits.build(digits.Config()).width
    wrong = Gaussian(torch.zeros(width).double(), torch.eye(width).double())
    write_reference(file, pool=wrong, evaluator="digits-another")
    with pytest.raises(RegscaleError, match=r"neither statistics.*statistics of digits-another"):
        distance(file)
    write_reference(
        file,
        pool=wrong,
        evaluator="digits-another",
        images=REAL.batches(),
        image_shape=REAL.shape,
    )
    assert abs(distance(file)) < 1e-6  # from the pictures


def test_cmmd_is_not_computed_on_mps_which_has_no_float64(tmp_path: Path) -> None:
    """Where there is no MPS either, its device can hold no tensor at all."""
    own = collect(digits.build(digits.Config()), [next(REAL.batches(range(20)))])
    seen = View(
        setting="references.clip",
        identity="real",
        evaluator="clip-x",
        width=own.features.shape[1],
        statistics=None,
        others=None,
        real=own,
    )
    place = Place(cluster=replace(ALONE, device=torch.device("mps")), folder=tmp_path)
    (found,) = _clip(own, seen, place)
    assert found.value == pytest.approx(0, abs=1e-9)
