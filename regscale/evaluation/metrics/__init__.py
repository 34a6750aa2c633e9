"""Distances and scores on arrays of features: one formula a file, float64, no model inside.

`Figure` is a value with its provenance.
"""

from regscale.evaluation.metrics.clip_score import clip_score
from regscale.evaluation.metrics.cmmd import cmmd
from regscale.evaluation.metrics.collected import Collected, gaussian_of, joined
from regscale.evaluation.metrics.figure import Figure
from regscale.evaluation.metrics.frechet import frechet_distance, frechet_distance_of
from regscale.evaluation.metrics.inception_score import Spread, inception_score
from regscale.evaluation.metrics.kid import kid
from regscale.evaluation.metrics.moments import Gaussian, Moments
from regscale.evaluation.metrics.noise_floor import noise_floor
from regscale.evaluation.metrics.precision_recall import PrecisionRecall, precision_recall
from regscale.evaluation.metrics.relative_distance import relative_distance
from regscale.evaluation.metrics.suite import (
    HeldOut,
    accuracy_figure,
    clip_score_figure,
    cmmd_figure,
    frechet_figure,
    inception_figures,
    relative_figure,
)

__all__ = [
    "Collected",
    "Figure",
    "Gaussian",
    "HeldOut",
    "Moments",
    "PrecisionRecall",
    "Spread",
    "accuracy_figure",
    "clip_score",
    "clip_score_figure",
    "cmmd",
    "cmmd_figure",
    "frechet_distance",
    "frechet_distance_of",
    "frechet_figure",
    "gaussian_of",
    "inception_figures",
    "inception_score",
    "joined",
    "kid",
    "noise_floor",
    "precision_recall",
    "relative_distance",
    "relative_figure",
]
