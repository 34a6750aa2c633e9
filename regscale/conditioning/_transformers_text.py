"""Tokenizers and widths of text models of the transformers library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from regscale.conditioning._frozen_text import Settings
from regscale.pretrained import place, reading, unreadable


def model_config(name: str, *, kind: str) -> Any:
    """The config of a hub id or folder."""
    with reading(name, kind=kind):
        return AutoConfig.from_pretrained(place(name), trust_remote_code=False)


def width(config: Settings, published: Mapping[str, int], *, kind: str) -> int:
    """Of the states; published models are described without a connection."""
    if config.model in published and not Path(config.model).is_dir():
        return published[config.model]
    return int(model_config(config.model, kind=kind).get_text_config().hidden_size)


def tokenizer(name: str, *, kind: str) -> tuple[Any, int]:
    """(the tokenizer, the token that ends a text)."""
    with reading(name, kind=kind):
        found = AutoTokenizer.from_pretrained(place(name), trust_remote_code=False)
    if found.eos_token_id is None:
        raise unreadable(name, "a tokenizer without a token that ends a text", kind=kind)
    return found, int(found.eos_token_id)


def ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """All tokens of a text, with or without the model's special ones around it."""
    found = tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)
    return [int(each) for each in found["input_ids"]]
