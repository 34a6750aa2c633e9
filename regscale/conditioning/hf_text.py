"""Decoder language models (Gemma, Qwen) as text encoders: hidden states of a chosen layer.

A text is read behind an optional instruction (SANA, arXiv 2410.10629, section 2.3) and ends with
the model's own end; the states of instruction and begin token are left out. Each token sees what
precedes it alone, so the last state, which has seen all, is the pooled text.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from regscale.conditioning import _transformers_text as library
from regscale.conditioning._frozen_text import FrozenText, Settings, Widths
from regscale.errors import RegscaleError
from regscale.pretrained import load

PUBLISHED = {
    "Qwen/Qwen3-0.6B": 1024,
    "Qwen/Qwen3-1.7B": 2048,
    "Qwen/Qwen3-4B": 2560,
    "google/gemma-2-2b": 2304,
    "google/gemma-2-2b-it": 2304,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """`layer` counts blocks, 0 being the embedding; -1 is the last one after its norm."""

    model: str = "Qwen/Qwen3-0.6B"
    layer: int = -1
    instruction: str = ""  # said before each text


class Decoder:
    """The `Encoder`. Texts are padded here, on the right, whatever side the tokenizer prefers."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        if library.model_config(config.model, kind="hf_text").is_encoder_decoder:
            raise RegscaleError(
                f"hf_text: model {config.model}",
                "is a decoder",
                found="an encoder with a decoder",
                fix="Choose one such as Qwen/Qwen3-0.6B, or conditioning.kind t5.",
            )
        self.tokenizer, self.end = library.tokenizer(config.model, kind="hf_text")
        self.layer = config.layer
        model = load(AutoModel, config.model, kind="hf_text", dtype=dtype)
        self.model: Any = getattr(model, "language_model", model)
        depth = self.model.config.num_hidden_layers
        if not -depth - 1 <= config.layer <= depth:
            raise RegscaleError(
                f"hf_text: layer of model {config.model}",
                f"is within 0 to {depth}",
                found=config.layer,
                fix="Set conditioning.layer; -1 is the last.",
            )
        head = library.ids(self.tokenizer, config.instruction, special=True)
        self.head = head[:-1] if head[-1:] == [self.end] else head

    def ids(self, text: str) -> list[int]:
        return [*library.ids(self.tokenizer, text, special=False), self.end]

    def __call__(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        before = len(self.head)
        head = torch.tensor(self.head, dtype=ids.dtype, device=ids.device).expand(len(ids), before)
        given = torch.cat([head, ids], dim=1)
        mask = torch.arange(given.shape[1], device=ids.device) < lengths[:, None] + before
        found = self.model(
            input_ids=given, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
        )
        states = found.hidden_states[self.layer][:, before:]
        return states, states[torch.arange(len(ids), device=ids.device), lengths - 1]


def build(config: Config) -> FrozenText:
    """The conditioner, nothing loaded yet."""
    width = library.width(config, PUBLISHED, kind="hf_text")
    return FrozenText("hf_text", config, Widths(width, width), Decoder)
