"""Several conditions that hold together, such as a class and a text, or two encoders of a text.

They are dropped together. The first part of a slot keeps its parameter names, so a model that was
trained on classes becomes one on classes and text.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regscale.conditioning import Conditioner
from regscale.conditioning._frozen_text import check_dropout
from regscale.conditioning.words import WordConditioner
from regscale.config import Invalid, kind_of, plugin, slots
from regscale.errors import RegscaleError
from regscale.types import Batch, Several, map_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`parts` by names of the user's choice. Their own `dropout` is not read."""

    parts: dict[str, Any] = slots("regscale.conditioning")
    dropout: float = 0.1  # of all parts together

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        for name, part in self.parts.items():
            if part.dropout not in (type(part)().dropout, self.dropout):
                raise Invalid(
                    f"parts.{name}.dropout",
                    "is left out: parts are dropped together",
                    found=part.dropout,
                    fix="Set conditioning.dropout.",
                )


class Together:
    """The conditioner of parts in the order of their names, which no layout of a file changes."""

    slot = ""  # each part has its own

    def __init__(self, parts: dict[str, Conditioner]) -> None:
        self.names, self.parts = tuple(sorted(parts)), [parts[name] for name in sorted(parts)]
        classes = [part.num_classes for part in self.parts if part.num_classes is not None]
        if len(classes) > 1:
            raise Invalid("parts", "have one class label at most", found=len(classes), fix="Drop.")
        self.num_classes = classes[0] if classes else None

    def to(self, device: torch.device) -> "Together":
        self.parts = [part.to(device) for part in self.parts]
        return self

    def encode(self, batch: Batch) -> Several:
        return Several(tuple(part.encode(batch) for part in self.parts))

    def null(self, like: Several) -> Several:
        pairs = zip(self.parts, like.parts, strict=True)
        return Several(tuple(part.null(each) for part, each in pairs))

    def blank(self, size: int) -> Several:
        return Several(tuple(part.blank(size) for part in self.parts))

    def embedder(self, width: int) -> nn.ModuleDict:
        made: dict[str, nn.Module] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            slot = f"{part.slot}_{name}" if part.slot in made else part.slot
            made[slot] = part.embedder(width)
        return nn.ModuleDict(made)

    def parse(self, texts: list[str]) -> Several:
        """A text is for all parts, if all read text. Beside a class it is for those that do, and
        there is no class; or it has a piece for each, as `golden retriever | a dog on a beach`."""
        pieces = [self._pieces(text) for text in texts]
        return Several(
            tuple(
                self._parsed(part, [piece[place] for piece in pieces])
                for place, part in enumerate(self.parts)
            )
        )

    def _pieces(self, text: str) -> list[str | None]:
        if self.num_classes is None:
            return [text] * len(self.parts)
        found = [piece.strip() for piece in text.split("|")]
        if len(found) == len(self.parts):
            return list(found)
        if len(found) == 1:
            return [text if part.num_classes is None else None for part in self.parts]
        raise RegscaleError(
            f"prompt {text!r}",
            f"has one piece, or one for each of {', '.join(self.names)}",
            found=len(found),
            fix=f"Write {' | '.join(self.names)}.",
        )

    def _parsed(self, part: Conditioner, pieces: list[str | None]) -> Any:
        if None not in pieces:
            return part.parse([piece for piece in pieces if piece is not None])
        nothing = map_tensors(lambda x: torch.zeros_like(x, device="cpu"), part.blank(1))
        rows = [part.null(nothing) if text is None else part.parse([text]) for text in pieces]
        return map_tensors(lambda *fields: torch.cat(fields), *rows)

    def examples(self) -> list[str]:
        if self.num_classes is None:  # a vocabulary of its own refuses the texts of others
            parts: list[Any] = self.parts
            own = [part for part in parts if isinstance(part, WordConditioner)]
            return list([*own, *parts][0].examples())
        return [" | ".join(row) for row in zip(*[p.examples() for p in self.parts], strict=False)]


def build(config: Config) -> Together:
    if not config.parts:
        raise Invalid("parts", "names conditions", found="none", fix="Add parts.text.kind=t5.")
    made = {
        name: plugin("regscale.conditioning", kind_of(part)).build(part)
        for name, part in config.parts.items()
    }
    return Together(made)
