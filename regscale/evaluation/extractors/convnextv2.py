"""ConvNeXt V2 (arXiv 2301.00808), one of the encoders of FDr^6 (arXiv 2604.28190): the mean over
all places after the last stage, under the model's own LayerNorm."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import ConvNextV2Model

from regscale.config import Invalid
from regscale.evaluation.extractors._transformers import TransformersExtractor


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`model` is a hub id or a folder that `save_pretrained` wrote; its own file says the size."""

    model: str = "facebook/convnextv2-base-22k-224"

    def __post_init__(self) -> None:
        if not self.model:
            raise Invalid("model", "names a model", found="''", fix="Give a hub id or a folder.")


def _pooled(model: Any, pixels: Tensor) -> Tensor:
    pooled: Tensor = model(pixels).pooler_output
    return pooled


def build(config: Config) -> TransformersExtractor:
    """The extractor, nothing loaded yet."""
    return TransformersExtractor(
        "convnextv2",
        config.model,
        source=ConvNextV2Model,
        features=_pooled,
        width=lambda found: int(found.hidden_sizes[-1]),
        taken="mean of all places after the last LayerNorm",
        processing={},
    )
