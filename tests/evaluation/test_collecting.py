"""Statistics of a file serve the extractor that made them; pictures beside them serve any.

Features of several processes are of the pictures that were asked for, whoever works beside them.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regscale.cluster import Cluster
from regscale.data import digits as source
from regscale.errors import RegscaleError
from regscale.evaluation._references import read_reference, write_reference
from regscale.evaluation.collecting import Place, features
from regscale.evaluation.extractors import collect, digits
from regscale.evaluation.judging import _clip, figures
from regscale.evaluation.metrics import Gaussian, gaussian_of
from regscale.evaluation.pictures import of_source
from regscale.evaluation.real import View, reference
from tests.processes import Pool

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


def crossed(cluster: Cluster, folder: str) -> list[list[int]]:
    """How many pictures two jobs saw, the second of them at each meeting of the first."""
    extractor, small = digits.build(digits.Config()), REAL.first(50)
    counts: list[list[int]] = [[], []]

    class Crossed(Cluster):
        def together(self, make: Callable[[], Any]) -> Any:
            made = super().together(make)
            found = features(extractor, small, Place(cluster=cluster, folder=Path(folder)))
            counts[1].append(len(found.features))
            return made

    own = Crossed(**{each.name: getattr(cluster, each.name) for each in fields(cluster)})
    found = features(extractor, REAL, Place(cluster=own, folder=Path(folder)))
    counts[0].append(len(found.features))
    return counts


@pytest.mark.distributed
def test_a_job_does_not_read_what_another_left_in_the_folder(pool: Pool, tmp_path: Path) -> None:
    """The first process has no share of the 50, and finds one of the 599 where it would lie."""
    assert pool.run(2, crossed, str(tmp_path)) == [[[599], [50, 50]]] * 2
    assert not list(tmp_path.iterdir())
