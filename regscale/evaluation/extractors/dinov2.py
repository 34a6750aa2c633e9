"""DINOv2's class token, for FD-DINOv2 (arXiv 2306.04675; EDM2 takes the same model and size).

The whole picture is resized to 224 x 224, without the processor's own crop. The position table is
resampled as transformers does it; the authors' hub model adds an offset of 0.1 patches, so figures
compare with others of this extractor.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Dinov2Model

from regscale.config import Invalid
from regscale.evaluation.extractors._transformers import TransformersExtractor


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`model` is a hub id or a folder that `save_pretrained` wrote."""

    model: str = "facebook/dinov2-large"
    size: int = 224

    def __post_init__(self) -> None:
        if not self.model or self.size < 1:
            raise Invalid(
                "size" if self.model else "model",
                "names a model and a positive size",
                found=f"'{self.model}', {self.size}",
                fix="Try facebook/dinov2-large and 224.",
            )


def _class_token(model: Any, pixels: Tensor) -> Tensor:
    token: Tensor = model(pixels).last_hidden_state[:, 0]
    return token


def build(config: Config) -> TransformersExtractor:
    """The extractor, nothing loaded yet."""
    return TransformersExtractor(
        "dinov2",
        config.model,
        source=Dinov2Model,
        features=_class_token,
        width=lambda found: int(found.hidden_size),
        taken="class token after the last LayerNorm",
        processing={
            "size": {"height": config.size, "width": config.size},
            "do_center_crop": False,
        },
    )
