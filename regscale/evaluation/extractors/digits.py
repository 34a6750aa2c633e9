"""The embedded digits' own extractor: the shipped vision transformer, and a class by nearest mean.

Features are its class token. Logits fall with the squared distance to the mean of each class in the
training digits, in units of the mean within classes: a score of digits, comparable with no other.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from regscale.data import digits
from regscale.evaluation.extractors import Extracted
from regscale.evaluation.extractors._exact import float64
from regscale.representations import digits_vit

SHARPNESS = 2.0  # of the classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Nothing to choose: the model is shipped."""


class DigitsExtractor:
    """Class tokens (B, 48), and logits of the ten digits."""

    width = digits_vit.WIDTH

    def __init__(self) -> None:
        self._target = digits_vit.build(digits_vit.Config())
        self._device = torch.device("cpu")

    @property
    def identity(self) -> str:
        return f"digits-{self._target.identity.removeprefix('digits_vit-')}"

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor]:
        """(the mean of each class (10, 48), the mean squared distance to it)."""
        source = digits.build(digits.Config(split="train"))
        tokens = float64(self._target(source.images.to(self._device)).tokens[:, 0])
        labels = source.labels.to(tokens.device)
        means = torch.stack([tokens[labels == label].mean(0) for label in range(10)])
        return means, (tokens - means[labels]).square().sum(1).mean()

    def __call__(self, images: Tensor) -> Extracted:
        tokens = self._target(images.to(self._device)).tokens[:, 0]
        means, within = self._classes
        apart = (float64(tokens)[:, None] - means).square().sum(2)  # (B, 10)
        return Extracted(tokens, logits=(-SHARPNESS * apart / within).float())

    def to(self, device: torch.device) -> "DigitsExtractor":
        self._device = torch.device(device)
        self._target.to(self._device)
        self.__dict__.pop("_classes", None)
        return self


def build(config: Config) -> DigitsExtractor:
    """The extractor; `config` has nothing to say."""
    del config
    return DigitsExtractor()
