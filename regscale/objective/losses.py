"""The REG objective (arXiv 2507.01467, eq. 8): denoising, token velocity and alignment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regscale.path import Path
from regscale.types import Draw, Entangled, Example, Features, Losses, Prediction, choose

Model = Callable[..., Prediction]


@dataclass(frozen=True, slots=True)
class Weights:
    """What each loss counts for; the denoising loss counts 1."""

    tokens: tuple[float, ...]
    alignment: tuple[float, ...]


def losses(model: Model, example: Example, draw: Draw, *, null: Any, path: Path) -> Losses:
    """The losses of each sample, fp32.

    What is neither entangled nor aligned has no entry, and so no computation. A leaf that waits or
    is done at its time has no loss: sampling never uses its velocity there.
    """
    noisy = path.interpolate(example.clean, draw.noise, draw.times)
    target = path.velocity(example.clean, draw.noise, draw.times)
    condition = choose(draw.keep, example.condition, null)
    predicted = model(noisy.latents, noisy.tokens, draw.times.image, draw.times.tokens, condition)
    errors = Entangled(predicted.latents, predicted.tokens).zip(target, squared_error)
    if draw.moving is not None:
        errors = errors * draw.moving
    pairs = zip(predicted.aligned, example.features, strict=True)
    return Losses(
        denoising=errors.latents,
        tokens=errors.tokens,
        alignment=tuple(None if a is None else alignment(a, f) for a, f in pairs),
    )


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each sample: (B,), fp32."""
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)


def alignment(projected: Tensor, features: Features) -> Tensor:
    """Minus the mean cosine of projected hidden states and features: (B,), fp32 (REPA, eq. 8).

    The places of an entangled target are [tokens | patches], of another its patches alone.
    """
    tokens, patches = features
    if patches is None:
        reference = tokens
    elif patches.shape[1] == projected.shape[1]:
        reference = patches
    else:
        reference = torch.cat([tokens, patches], dim=1)
    cosine = F.cosine_similarity(projected.float(), reference.float(), dim=-1, eps=1e-12)
    return -cosine.mean(dim=1)


def total(losses: Losses, weights: Weights) -> Tensor:
    """The weighted sum, averaged over the batch: ()."""
    value = losses.denoising.mean()
    for weight, loss in zip(weights.tokens, losses.tokens, strict=True):
        value = value + weight * loss.mean()
    for weight, aligned in zip(weights.alignment, losses.alignment, strict=True):
        if aligned is not None:
            value = value + weight * aligned.mean()
    return value
