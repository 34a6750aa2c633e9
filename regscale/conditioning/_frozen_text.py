"""What frozen text encoders share: lazy weights, each distinct caption once, lengths, the null.

A kind is one short file with `Config`, an `Encoder` and `build`. B batch, L E tokens and width,
P width of the pooled text.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.config import Invalid
from regscale.layers.embedder import TextEmbedder
from regscale.pretrained import DTYPES, Dtype
from regscale.types import Batch, Text

log = logging.getLogger(__name__)

EXAMPLES = (
    "a photo of a golden retriever on a beach",
    "a red cube on top of a blue sphere",
    "an oil painting of a lighthouse in fog",
    "three apples in a wooden bowl",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`model` is a hub id or a folder that `save_pretrained` wrote."""

    model: str
    max_length: int = 128  # tokens that the backbone reads; the rest of a prompt is cut off
    dropout: float = 0.1  # of captions in training, for classifier-free guidance
    dtype: Dtype | None = None  # of the encoder; null: bf16 on CUDA, fp32 elsewhere
    examples: tuple[str, ...] = EXAMPLES  # prompts of pictures during training

    def __post_init__(self) -> None:
        if not self.model:
            raise Invalid("model", "names a model", found="''", fix="Give a hub id or a folder.")
        if self.max_length < 2:
            raise Invalid("max_length", "is 2 or more", found=self.max_length, fix="Try 128.")
        check_dropout(self.dropout)


def check_dropout(dropout: float) -> None:
    """Refuse a share that leaves no caption."""
    if not 0 <= dropout < 1:
        raise Invalid("dropout", "is in [0, 1)", found=dropout, fix="Usual: 0.1.")


class Widths(NamedTuple):
    """What must be known of an encoder before its weights are read."""

    tokens: int  # E
    pooled: int  # P


class Encoder(Protocol):
    """A loaded encoder with its tokenizer."""

    model: nn.Module
    end: int  # the token that ends a text, also one that was cut off

    def ids(self, text: str) -> list[int]:
        """All tokens of a text, however many, the last one being `end`."""
        ...

    def __call__(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, L, E) and pooled text (B, P) of tokens (B, L), padded with 0 on the right."""
        ...


class FrozenText:
    """The conditioner of a frozen encoder."""

    slot = "txt_embedder"
    num_classes = None

    def __init__(
        self, kind: str, config: Any, widths: Widths, load: Callable[[Any, torch.dtype], Encoder]
    ) -> None:
        self.kind, self.config, self.widths, self._load = kind, config, widths, load
        self._device, self._told = torch.device("cpu"), False
        self._empty: Text | None = None

    @cached_property
    def encoder(self) -> Encoder:
        """Loaded when it is first needed, frozen."""
        encoder = self._load(self.config, self._dtype())
        encoder.model.to(self._device, self._dtype()).eval().requires_grad_(False)
        return encoder

    def _dtype(self) -> torch.dtype:
        default: Dtype = "bf16" if self._device.type == "cuda" else "fp32"
        return DTYPES[self.config.dtype or default]

    def to(self, device: torch.device) -> "FrozenText":
        self._device, self._empty = torch.device(device), None
        if "encoder" in self.__dict__:
            self.encoder.model.to(self._device, self._dtype())
        return self

    def encode(self, batch: Batch) -> Text:
        return self._encode(batch.require("captions", by=self.kind))

    def parse(self, texts: list[str]) -> Text:
        """Prompts as they are; the empty one is the null."""
        return self._encode(texts)

    def examples(self) -> list[str]:
        return list(self.config.examples)

    def null(self, like: Text) -> Text:
        """The encoded empty text, which is computed once."""
        if self._empty is None:
            self._empty = self._encode([""])
        rows = [a.to(b).expand_as(b) for a, b in zip(self._empty, like, strict=True)]
        return Text(*rows)

    def blank(self, size: int) -> Text:
        length, (width, pooled) = self.config.max_length, self.widths
        shapes: Sequence[tuple[int, ...]] = ((size, length, width), (size,), (size, pooled))
        tokens, lengths, summary = (torch.zeros(shape, device="meta") for shape in shapes)
        return Text(tokens, lengths.long(), summary)

    def embedder(self, width: int) -> TextEmbedder:
        return TextEmbedder(*self.widths, width)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Text:
        """Each distinct text once, over the longest one; the result is padded to `max_length`, so
        that a compiled backbone sees one shape."""
        distinct = list(dict.fromkeys(texts))
        rows = [self._ids(text) for text in distinct]
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        longest, device = max(map(len, rows)), self._device
        padded = [row + [0] * (longest - len(row)) for row in rows]
        with torch.autocast(device.type, enabled=False):
            states, pooled = self.encoder(torch.tensor(padded, device=device), lengths)
        padding = torch.arange(longest, device=device) >= lengths[:, None]
        states = states.masked_fill(padding[..., None], 0)
        states = F.pad(states, (0, 0, 0, self.config.max_length - longest))
        number = {text: place for place, text in enumerate(distinct)}
        order = torch.tensor([number[text] for text in texts], device=device)
        return Text(states[order], lengths[order], pooled[order])

    def _ids(self, text: str) -> list[int]:
        found, most = self.encoder.ids(text), self.config.max_length
        if len(found) <= most:
            return found
        if not self._told:
            self._told = True
            message = (
                "%s: a prompt has %s tokens, of which the first %s are read (max_length): '%s...'; "
                "further ones are not told"
            )
            log.warning(message, self.kind, len(found), most - 1, text[:60])
        return [*found[: most - 1], self.encoder.end]


def mean(states: Tensor, lengths: Tensor) -> Tensor:
    """Of the states of each text, in fp32: (B, E)."""
    places = torch.arange(states.shape[1], device=lengths.device)
    kept = (places < lengths[:, None])[..., None]
    total = states.float().masked_fill(~kept, 0).sum(dim=1)
    return (total / lengths[:, None]).to(states.dtype)
