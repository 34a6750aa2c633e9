"""From collected features to figures with their provenance and, given real data, their noise floor.

`real` is what the same extractor returned for real pictures: those of an ADM reference's `arr_0`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from regscale.errors import RegscaleError
from regscale.evaluation.metrics.clip_score import clip_score
from regscale.evaluation.metrics.cmmd import cmmd
from regscale.evaluation.metrics.collected import Collected, gaussian_of
from regscale.evaluation.metrics.figure import Figure
from regscale.evaluation.metrics.frechet import frechet_distance_of
from regscale.evaluation.metrics.inception_score import inception_score
from regscale.evaluation.metrics.kid import kid
from regscale.evaluation.metrics.moments import Gaussian
from regscale.evaluation.metrics.noise_floor import means_apart, noise_floor
from regscale.evaluation.metrics.precision_recall import precision_recall
from regscale.evaluation.metrics.relative_distance import relative_distance

Pair = Callable[[Tensor, Tensor], float]
NO_PICTURES = "the reference holds no pictures"


class Floor(NamedTuple):
    """The metric between halves of real data, or why it cannot be told."""

    value: float | None = None
    num_samples: int | None = None  # in each half
    lacking: str = ""


class HeldOut(NamedTuple):
    """How far held-out real data is from a reference, in the eyes of one extractor."""

    identity: str
    evaluator: str
    distance: float


def inception_figures(
    made: Collected,
    *,
    reference: str,
    pool: Gaussian,
    spatial: Gaussian | None = None,
    real: Collected | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Figure, ...]:
    """FID, then sFID and IS where their features are there, then precision, recall and KID of
    `real`; `reference` is the identity of the statistics and of `real`."""
    figures = [frechet_figure("FID", made, reference=reference, against=pool, real=real)]
    if spatial is not None and made.spatial is not None:
        value = _distance("sFID", made.spatial, spatial, reference)
        floor = _floor(_frechet, None if real is None else real.spatial)
        figures.append(_figure("sFID", value, made, reference, floor=floor))
    if made.logits is not None:
        score = inception_score(made.logits)
        floor = _floor(_score_apart, None if real is None else real.logits)
        figures.append(_figure("IS", score.mean, made, None, spread=score.std, floor=floor))
    if real is not None:
        figures.extend(_neighbour_figures(made, real, reference, torch.device(device)))
    return tuple(figures)


def frechet_figure(
    name: str,
    made: Collected,
    *,
    reference: str,
    against: Gaussian,
    real: Collected | None = None,
) -> Figure:
    """The Fréchet distance of `made.features`: FID, or FD-DINOv2, by the extractor."""
    value = _distance(name, made.features, against, reference)
    floor = _floor(_frechet, None if real is None else real.features)
    return _figure(name, value, made, reference, floor=floor)


def relative_figure(name: str, made: Sequence[Figure], held_out: Sequence[HeldOut]) -> Figure:
    """`relative_distance` of Fréchet figures, in units of held-out data of the same extractors."""
    value = relative_distance(
        {figure.evaluator: figure.value for figure in made},
        {each.evaluator: each.distance for each in held_out},
    )
    beside = ", ".join(dict.fromkeys(each.identity for each in held_out))
    return Figure(
        name=name,
        value=value,
        num_samples=min(figure.num_samples for figure in made),
        evaluator=" + ".join(figure.evaluator for figure in made),
        reference=f"{_joined(made)}; held out {beside}",
        noise_floor=1.0,  # held-out data themselves
    )


def cmmd_figure(
    made: Collected, real: Collected, *, reference: str, device: torch.device | str = "cpu"
) -> Figure:
    """CMMD of CLIP embeddings."""
    metric = partial(cmmd, device=device)
    value = metric(real.features, made.features)
    return _figure("CMMD", value, made, reference, floor=_floor(metric, real.features))


def clip_score_figure(
    made: Collected,
    text_features: Tensor,
    *,
    model: str,
    real: Collected | None = None,
) -> Figure:
    """CLIPScore of pictures and their captions; its name tells the model. `real` are real pictures
    of the same captions."""
    score = clip_score(made.features, text_features)
    floor = Floor(lacking="no real pictures of the captions")
    if real is not None:
        pairs = torch.cat([real.features, text_features], dim=1)
        floor = _floor(_clip_scores_apart, pairs)
    return _figure(f"CLIPScore ({model})", score.mean, made, None, spread=score.std, floor=floor)


def accuracy_figure(name: str, right: Tensor, made: Collected, *, real_right: Tensor) -> Figure:
    """The share of (N,) verdicts that are right; `real_right` are those on real pictures."""
    floor = _floor(means_apart, real_right[:, None])
    return _figure(name, float(right.double().mean()), made, None, floor=floor)


def _distance(name: str, features: Tensor, against: Gaussian, reference: str) -> float:
    if features.shape[1] != len(against.mean):
        raise RegscaleError(
            f"{name}: reference {reference}",
            f"is not of the extractor's features, which are {features.shape[1]} wide",
            found=f"a mean of {len(against.mean)} numbers",
            fix="Give statistics that were made with this extractor.",
        )
    return frechet_distance_of(gaussian_of(features), against)


def _neighbour_figures(
    made: Collected, real: Collected, reference: str, device: torch.device
) -> list[Figure]:
    assert made.evaluator == real.evaluator, "features of one extractor are compared"
    pairs = partial(precision_recall, device=device)
    halves: list[float] = []

    def precision(a: Tensor, b: Tensor) -> float:
        values = pairs(a, b)
        halves.append(values.recall)
        return values.precision

    values = pairs(real.features, made.features)
    floor = _floor(precision, real.features)
    distance = kid(real.features, made.features)
    kid_floor = _floor(lambda a, b: kid(a, b).mean, real.features)
    return [
        _figure("precision", values.precision, made, reference, floor=floor),
        _figure("recall", values.recall, made, reference, floor=floor._replace(value=halves[0])),
        _figure("KID", distance.mean, made, reference, spread=distance.std, floor=kid_floor),
    ]


def _figure(
    name: str,
    value: float,
    made: Collected,
    reference: str | None,
    *,
    floor: Floor,
    spread: float | None = None,
) -> Figure:
    return Figure(
        name=name,
        value=value,
        num_samples=len(made),
        evaluator=made.evaluator,
        reference=reference,
        spread=spread,
        noise_floor=floor.value,
        noise_samples=floor.num_samples,
        no_floor=floor.lacking,
    )


def _joined(figures: Sequence[Figure]) -> str:
    return " + ".join(dict.fromkeys(figure.reference or "none" for figure in figures))


def _floor(metric: Pair, features: Tensor | None) -> Floor:
    if features is None:
        return Floor(lacking=NO_PICTURES)
    return Floor(noise_floor(metric, features), len(features) // 2)


def _frechet(a: Tensor, b: Tensor) -> float:
    return frechet_distance_of(gaussian_of(a), gaussian_of(b))


def _score_apart(a: Tensor, b: Tensor) -> float:
    """A score has no second set: how far apart the scores of both halves are."""
    return abs(inception_score(a).mean - inception_score(b).mean)


def _clip_scores_apart(a: Tensor, b: Tensor) -> float:
    """Of pictures and captions side by side, (N, 2 R)."""
    return abs(clip_score(*a.chunk(2, dim=1)).mean - clip_score(*b.chunk(2, dim=1)).mean)
