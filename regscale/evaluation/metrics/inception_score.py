"""Inception Score (arXiv 1606.03498): sure of each image, undecided about all of them."""

from itertools import pairwise
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from regscale.evaluation.metrics._enough import at_least


class Spread(NamedTuple):
    """A mean over splits or subsets and their standard deviation (divided by their number)."""

    mean: float
    std: float


def inception_score(logits: Tensor, *, splits: int = 10) -> Spread:
    """exp(E KL(p(y|x) || p(y))), the mean over consecutive splits; `logits` are (N, classes).

    ADM's evaluator and torch-fidelity take the 1008 logits without their bias; torchvision's
    Inception has 1000, which give another score. Probabilities enter as their logarithms. 50,000
    samples in 10 splits are the splits of 5,000 of ADM's evaluator. The order of the samples
    matters: images sorted by class must be shuffled first.
    """
    at_least(splits, len(logits), metric="Inception Score")
    values = logits.detach().double()
    edges = [i * len(values) // splits for i in range(splits + 1)]
    scores = torch.stack([_score(values[a:b]) for a, b in pairwise(edges)])
    return Spread(float(scores.mean()), float(scores.std(correction=0)))


def _score(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    log_marginal = log_p.logsumexp(0) - log(len(log_p))  # of a class that is e^-800 in all samples
    # classes that no sample has, 0 log 0, add nothing
    gained = torch.where(p > 0, p * (log_p - log_marginal), torch.zeros_like(p))
    return gained.sum(1).mean().exp()
