"""The text tower of open_clip models (arXiv 2212.07143): states of a layer after the final norm,
and the embedding that is compared with images."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.conditioning._frozen_text import FrozenText, Settings, Widths
from regscale.config import Invalid
from regscale.config.slots import nearest
from regscale.errors import RegscaleError
from regscale.pretrained import reading

try:
    import open_clip
except ModuleNotFoundError as error:
    if error.name == "open_clip":
        error.name = "open_clip_torch"  # what to install is named after the library it needs
    raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """`model` is a name of open_clip, `hf-hub:owner/name` or `local-dir:/folder`.

    `pretrained` is a tag or a file of weights, for names alone. `layer` counts blocks from the
    last one, which is -1; Stable Diffusion 2 takes -2.
    """

    model: str = "ViT-L-14"
    pretrained: str | None = "datacomp_xl_s13b_b90k"
    max_length: int = 77
    layer: int = -1


class TextTower:
    """The `Encoder`, for models with CLIP's own tokenizer."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:  # noqa: ARG002
        with reading(config.model, kind="open_clip"):
            self.tokenizer: Any = open_clip.get_tokenizer(config.model)
            self.model: Any = open_clip.create_model(
                config.model,
                None if ":" in config.model else config.pretrained,
                require_pretrained=True,
            )
        if not isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            raise RegscaleError(
                f"open_clip: model {config.model}",
                "has the tokenizer of CLIP",
                found=type(self.tokenizer).__name__,
                fix="Choose one such as ViT-L-14, or conditioning.kind t5 or hf_text.",
            )
        self.model.visual = nn.Identity()
        self.context, self.layer = self.model.context_length, config.layer
        self.end = self.tokenizer.eot_token_id

    def ids(self, text: str) -> list[int]:
        return [self.tokenizer.sot_token_id, *self.tokenizer.encode(text), self.end]

    def __call__(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The tower takes texts of one length; a text ends where its end token stands."""
        whole = F.pad(ids, (0, self.context - ids.shape[1]))
        found = self.model.forward_intermediates(
            text=whole, normalize=False, normalize_intermediates=True
        )
        states: Tensor = found["text_intermediates"][self.layer]
        return states[:, : ids.shape[1]], found["text_features"]


def build(config: Config) -> FrozenText:
    """The conditioner, nothing loaded yet."""
    with reading(config.model, kind="open_clip"):
        found = open_clip.get_model_config(config.model)
    if found is None:
        names = open_clip.list_models()
        raise Invalid(
            "model", "names a model", found=config.model, fix=nearest(config.model, names)
        )
    _check(config, found["text_cfg"])
    return FrozenText(
        "open_clip",
        config,
        Widths(found["text_cfg"].get("width", 512), found["embed_dim"]),
        TextTower,
    )


def _check(config: Config, text: dict[str, Any]) -> None:
    context, depth = text.get("context_length", 77), text.get("layers", 12)
    if config.max_length > context:
        raise Invalid(
            "max_length",
            f"is at most the {context} tokens that {config.model} takes",
            found=config.max_length,
            fix=f"Give {context}.",
        )
    if not -depth <= config.layer < 0:
        raise Invalid("layer", f"is from -{depth} to -1", found=config.layer, fix="-1: the last.")
    if ":" in config.model:
        return
    tags, name = open_clip.list_pretrained_tags_by_model(config.model), config.pretrained or ""
    if name not in tags and not os.path.isfile(name):
        raise Invalid(
            "pretrained",
            f"is a tag of {config.model} or a file of its weights",
            found=config.pretrained,
            fix=nearest(name, tags),
        )
