"""Words of a small vocabulary with a trainable embedding: text without a pretrained encoder.

B batch, L words of a text and its end. Word 0 is the end.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regscale.conditioning._frozen_text import check_dropout, mean
from regscale.config import Invalid
from regscale.config.slots import nearest
from regscale.errors import RegscaleError
from regscale.layers.embedder import Embedder, TextEmbedder
from regscale.layers.initial import normal
from regscale.types import Batch, Embedded, Text

VOCABULARIES = Path(__file__).parent / "vocabularies"
WORD = re.compile(r"\w+")


class Words(NamedTuple):
    """Texts as numbers of words, padded with the end."""

    words: Tensor  # (B, L) int64
    lengths: Tensor  # (B,) int64, the end included


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`vocabulary` is shapecaps, or a text file with a word a line; `words` are added to it."""

    vocabulary: str | None = "shapecaps"
    words: tuple[str, ...] = ()
    max_length: int = 16
    width: int = 64  # of the embedding; the refiner has the backbone's
    positions: bool = True  # learned; without them a text is a bag of words
    dropout: float = 0.1  # of captions in training, for classifier-free guidance
    examples: tuple[str, ...] = (
        "a circle",
        "a red square",
        "three crosses",
        "a triangle left of a diamond",
    )

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        for key, least in (("max_length", 2), ("width", 1)):
            if getattr(self, key) < least:
                raise Invalid(key, f"is {least} or more", found=getattr(self, key), fix="Try 64.")


class WordTable(nn.Embedding):
    """A row per word or place, normal with deviation 1: they are normalised before use."""

    def __init__(self, num_words: int, width: int) -> None:
        super().__init__(num_words, width)
        self.initial = {"weight": normal(1.0)}


class WordEmbedder(Embedder):
    """Embedded words through the text embedder of frozen encoders; pooled is their mean.

    Attention alone knows no order, and a frozen encoder brings its own: words bring `positions`.
    """

    reads_text = True

    def __init__(self, num_words: int, num_positions: int, word_width: int, width: int) -> None:
        super().__init__()
        self.words = WordTable(num_words, word_width)
        self.positions = WordTable(num_positions, word_width) if num_positions else None
        self.text = TextEmbedder(word_width, word_width, width)

    def forward(self, condition: Words) -> Embedded:
        rows = self.words(condition.words)  # (B, L, word width)
        if self.positions is not None:
            rows = rows + self.positions.weight[: rows.shape[1]]
        text = Text(rows, condition.lengths, mean(rows, condition.lengths))
        embedded: Embedded = self.text(text)
        return embedded

    def low_precision(self) -> Iterator[nn.Module]:
        yield from self.text.low_precision()


class WordConditioner:
    """The conditioner. A word that is not in the vocabulary is refused, in data as in prompts."""

    slot = "txt_embedder"
    num_classes = None

    def __init__(self, config: Config) -> None:
        self.config = config
        words = [*_read(config.vocabulary), *(word.casefold() for word in config.words)]
        self.numbers = {word: place for place, word in enumerate(dict.fromkeys(words), start=1)}
        self._device = torch.device("cpu")
        try:
            self.parse(list(config.examples))
        except RegscaleError as error:
            raise Invalid(
                "examples",
                "are texts of the vocabulary",
                found=f"{error.where} with {error.found}",
                fix="Give prompts of its words, for pictures during training.",
            ) from error

    def to(self, device: torch.device) -> "WordConditioner":
        self._device = torch.device(device)
        return self

    def encode(self, batch: Batch) -> Words:
        captions = batch.require("captions", by="words")
        pairs = zip(batch.keys, captions, strict=True)
        return self._padded([self._numbers(text, f"sample {key}") for key, text in pairs])

    def parse(self, texts: list[str]) -> Words:
        return self._padded([self._numbers(text, f"prompt {text!r}") for text in texts])

    def null(self, like: Words) -> Words:
        return Words(torch.zeros_like(like.words), torch.ones_like(like.lengths))

    def blank(self, size: int) -> Words:
        shape = (size, self.config.max_length)
        words = torch.zeros(shape, dtype=torch.int64, device="meta")
        return Words(words, words[:, 0])

    def embedder(self, width: int) -> WordEmbedder:
        places = self.config.max_length if self.config.positions else 0
        return WordEmbedder(len(self.numbers) + 1, places, self.config.width, width)

    def examples(self) -> list[str]:
        return list(self.config.examples)

    def _padded(self, rows: Sequence[list[int]]) -> Words:
        most = self.config.max_length
        padded = [row + [0] * (most - len(row)) for row in rows]
        lengths = [len(row) + 1 for row in rows]
        return Words(
            torch.tensor(padded, device=self._device), torch.tensor(lengths, device=self._device)
        )

    def _numbers(self, text: str, where: str) -> list[int]:
        found = WORD.findall(text.casefold())
        unknown = [word for word in found if word not in self.numbers]
        if unknown:
            raise RegscaleError(
                where,
                "has words of the vocabulary alone",
                found=", ".join(unknown),
                fix=nearest(unknown[0], self.numbers),
            )
        if len(found) >= self.config.max_length:
            raise RegscaleError(
                where,
                f"has less than {self.config.max_length} words",
                found=len(found),
                fix="Shorten it, or give more conditioning.max_length.",
            )
        return [self.numbers[word] for word in found]


def _read(vocabulary: str | None) -> list[str]:
    if vocabulary is None:
        return []
    known = {path.stem: path for path in VOCABULARIES.glob("*.txt")}
    path = known.get(vocabulary, Path(vocabulary).expanduser())
    try:
        return path.read_text(encoding="utf-8").casefold().split()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            "vocabulary",
            f"is {', '.join(sorted(known))} or a readable text file",
            found=repr(vocabulary),
            fix="Give a file with a word a line.",
        ) from error


def build(config: Config) -> WordConditioner:
    return WordConditioner(config)
