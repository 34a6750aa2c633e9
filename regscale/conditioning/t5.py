"""T5's encoder (arXiv 1910.10683, flan-T5 2210.11416): its last states, their mean as the pooled
text."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MT5EncoderModel, T5EncoderModel, UMT5EncoderModel

from regscale.conditioning import _transformers_text as library
from regscale.conditioning._frozen_text import FrozenText, Settings, Widths, mean
from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.pretrained import load

CLASSES = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}
PUBLISHED = {
    "google/flan-t5-small": 512,
    "google/flan-t5-base": 768,
    "google/flan-t5-large": 1024,
    "google/flan-t5-xl": 2048,
    "google/flan-t5-xxl": 4096,
    "google/t5-v1_1-xl": 2048,
    "google/t5-v1_1-xxl": 4096,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """Flan-T5-XL unless `model` says another."""

    model: str = "google/flan-t5-xl"

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        if self.dtype == "fp16":
            raise Invalid(
                "dtype",
                "is bf16 or fp32: states of T5 leave the range of fp16",
                found=self.dtype,
                fix="Leave it out: bf16 on CUDA, fp32 elsewhere.",
            )


class T5:
    """The `Encoder`."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        found = library.model_config(config.model, kind="t5").model_type
        if found not in CLASSES:
            raise RegscaleError(
                f"t5: model {config.model}",
                f"is of type {', '.join(CLASSES)}",
                found=found,
                fix="Choose one such as google/flan-t5-xl, or conditioning.kind hf_text.",
            )
        self.tokenizer, self.end = library.tokenizer(config.model, kind="t5")
        self.model: Any = load(CLASSES[found], config.model, kind="t5", dtype=dtype)

    def ids(self, text: str) -> list[int]:
        return library.ids(self.tokenizer, text, special=True)

    def __call__(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states, mean(states, lengths)


def build(config: Config) -> FrozenText:
    """The conditioner, nothing loaded yet."""
    width = library.width(config, PUBLISHED, kind="t5")
    return FrozenText("t5", config, Widths(width, width), T5)
