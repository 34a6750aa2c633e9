"""CLIP's image and text embeddings (arXiv 2103.00020), for CLIPScore and CMMD.

The default is CMMD's model. CLIPScore was published with ViT-B/32 and is mostly told of ViT-L/14
or g/14: set `model`, and name it with the figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from regscale.config import Invalid
from regscale.evaluation.extractors._exact import exactly
from regscale.evaluation.extractors._transformers import TransformersExtractor
from regscale.pretrained import place, reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`model` is a hub id or a folder that `save_pretrained` wrote."""

    model: str = "openai/clip-vit-large-patch14-336"

    def __post_init__(self) -> None:
        if not self.model:
            raise Invalid("model", "names a model", found="''", fix="Give a hub id or a folder.")


class ClipExtractor(TransformersExtractor):
    """Embeddings of pictures and, for CLIPScore, of captions; neither is divided by its norm."""

    @cached_property
    def tokenizer(self) -> Any:
        with reading(self.name, kind=self.kind):
            return AutoTokenizer.from_pretrained(place(self.name), trust_remote_code=False)

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """(B, R) of captions, cut to the model's number of tokens (77)."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(self._device)
        with exactly(self._device):
            states = self.model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            embedded: Tensor = self.model.text_projection(states.pooler_output).float()
        return embedded


def _embedding(model: Any, pixels: Tensor) -> Tensor:
    states = model.vision_model(pixel_values=pixels)
    embedded: Tensor = model.visual_projection(states.pooler_output)
    return embedded


def build(config: Config) -> ClipExtractor:
    """The extractor, nothing loaded yet."""
    return ClipExtractor(
        "clip",
        config.model,
        source=CLIPModel,
        features=_embedding,
        width=lambda found: int(found.projection_dim),
        taken="image embedding",
        processing={},
    )
