"""Any target's features, for the encoders of FDr^6 (arXiv 2604.28190) that are targets here, and
for judging a run by the very model it was trained with."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regscale.config import Invalid, kind_of, plugin
from regscale.config.slots import slot
from regscale.errors import RegscaleError
from regscale.evaluation.extractors import Extracted
from regscale.evaluation.extractors._exact import exactly
from regscale.pretrained import identity
from regscale.representations import Target

PACKAGE = "regscale.representations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`features` are the mean of the target's tokens, of which most have one, or of its patches."""

    target: Any = slot(PACKAGE, "dinov2")
    features: Literal["tokens", "patches"] = "tokens"

    def __post_init__(self) -> None:
        if kind_of(self.target) == "stored":
            raise Invalid(
                "target.kind",
                "is an encoder, which computes features of any picture",
                found="stored",
                fix="Name the kind of the encoder that made the stored features.",
            )


class TargetExtractor:
    """A target, in fp32 products."""

    def __init__(self, config: Config) -> None:
        self.kind, self.taken = kind_of(config.target), config.features
        self.target: Target = plugin(PACKAGE, self.kind).build(config.target)
        self._device = torch.device("cpu")
        if self.taken == "patches" and self.target.grid(256, 256) is None:
            raise RegscaleError(
                f"target {self.kind}: features",
                "is what the target has",
                found="patches, of which it has none",
                fix="Set features=tokens of this extractor.",
            )

    @property
    def width(self) -> int:
        return self.target.width

    @property
    def identity(self) -> str:
        return identity(f"{self.kind}_target", [f"mean of {self.taken}", self.target.identity], [])

    def __call__(self, images: Tensor) -> Extracted:
        with exactly(self._device):
            found = self.target(images.to(self._device))
        taken = found.tokens if self.taken == "tokens" else found.patches
        assert taken is not None, "checked when this was made"
        return Extracted(taken.mean(1))

    def to(self, device: torch.device) -> "TargetExtractor":
        self._device = torch.device(device)
        self.target.to(self._device)
        return self


def build(config: Config) -> TargetExtractor:
    """The extractor, nothing loaded yet."""
    return TargetExtractor(config)
