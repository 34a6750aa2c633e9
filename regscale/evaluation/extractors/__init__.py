"""Frozen models whose features the metrics compare; choosing a kind imports its library."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from regscale.errors import RegscaleError
from regscale.evaluation.metrics import Collected, joined


class Extracted(NamedTuple):
    """Of a batch of images; fp32."""

    features: Tensor  # (B, R)
    spatial: Tensor | None = None  # (B, 2023): ADM's, of Inception alone
    logits: Tensor | None = None  # (B, 1008): without bias, of Inception alone


class Extractor(Protocol):
    """A kind is a file here with `Config` and `build(config) -> Extractor`."""

    @property
    def width(self) -> int:
        """R."""
        ...

    @property
    def identity(self) -> str:
        """A hash of weights and preprocessing, to stand beside every figure."""
        ...

    def __call__(self, images: Tensor) -> Extracted:
        """Of (B, 3, SH, SW) uint8 images; resizes and normalises by itself."""
        ...

    def to(self, device: torch.device) -> "Extractor":
        """The same extractor on a device."""
        ...


def collect(extractor: Extractor, batches: Iterable[Tensor]) -> Collected:
    """The features of all pictures, batches of uint8 (B, 3, SH, SW), kept on the CPU."""
    identity = extractor.identity
    parts = [_of_batch(identity, extractor(batch)) for batch in batches]
    if not parts:
        raise RegscaleError(
            "evaluation", "has no pictures", found="0 batches", fix="Name a folder with samples."
        )
    return joined(parts)


def _of_batch(evaluator: str, found: Extracted) -> Collected:
    features, spatial, logits = (None if each is None else each.cpu() for each in found)
    assert features is not None, "every extractor has features"
    return Collected(evaluator=evaluator, features=features, spatial=spatial, logits=logits)
