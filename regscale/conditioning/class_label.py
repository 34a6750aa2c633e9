"""A class label: a row of a table (DiT, arXiv 2212.09748), its last row being "no class"."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.layers.embedder import Embedder
from regscale.layers.initial import normal
from regscale.types import Batch, Embedded, Labels

NAMES = Path(__file__).parent / "names"
SYNSET = re.compile(r"n\d{8} ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`names` is imagenet, digits, or a text file with one class a line, synonyms after commas.

    null: classes have numbers only.
    """

    num_classes: int = 1000
    dropout: float = 0.1  # of labels in training, for classifier-free guidance
    names: str | None = "imagenet"

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise Invalid(
                "num_classes", "is a positive number", found=self.num_classes, fix="Give 1 or more."
            )
        if not 0 <= self.dropout < 1:
            raise Invalid("dropout", "is in [0, 1)", found=self.dropout, fix="The paper: 0.1.")


class LabelTable(nn.Embedding):
    """A row per class and one for "no class", normal with deviation 0.02 as published."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__(num_rows, width)
        self.initial = {"weight": normal(0.02)}


class LabelEmbedder(Embedder):
    """Labels (B,) to vectors (B, D).

    The row of "no class" is there also without dropout, where the published code leaves it out.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = LabelTable(num_classes + 1, width)

    def forward(self, condition: Labels) -> Embedded:
        return Embedded(pooled=self.embedding_table(condition.labels))


class ClassLabel:
    """The conditioner: labels as they are. Sources check that labels are in range."""

    slot = "y_embedder"

    def __init__(self, config: Config) -> None:
        self.num_classes = config.num_classes
        self.names = _read(config.names, config.num_classes)  # per class, the first one is shown

    def encode(self, batch: Batch) -> Labels:
        return Labels(batch.require("labels", by="class_label"))

    def null(self, like: Labels) -> Labels:
        return Labels(torch.full_like(like.labels, self.num_classes))

    def embedder(self, width: int) -> LabelEmbedder:
        return LabelEmbedder(self.num_classes, width)

    def blank(self, size: int) -> Labels:
        return Labels(torch.zeros(size, dtype=torch.int64, device="meta"))

    def to(self, device: torch.device) -> "ClassLabel":  # noqa: ARG002
        return self

    def parse(self, texts: list[str]) -> Labels:
        """Numbers, names, synonyms, or beginnings of a name that only one class has."""
        return Labels(torch.tensor([self._find(text) for text in texts], dtype=torch.int64))

    def describe(self, label: int) -> str:
        """The label with its name, as in `207 golden retriever`."""
        if label == self.num_classes:
            return "no class"
        return " ".join([str(label), *self.names[label][:1]])

    def examples(self) -> list[str]:
        """Up to ten classes over the whole range, as texts that `parse` takes."""
        classes = range(0, self.num_classes, max(1, self.num_classes // 10))[:10]
        return [self._short(label) for label in classes]

    def _short(self, label: int) -> str:
        for name in self.names[label]:
            if next(self._matches(_plain(name))) == {label}:
                return name
        return str(label)

    def _find(self, text: str) -> int:
        if re.fullmatch(r"[+-]?\d+", text.strip()):
            return self._in_range(int(text))
        for found in self._matches(_plain(text)):
            if len(found) == 1:
                return found.pop()
            if found:
                raise RegscaleError(
                    f"class {text!r}",
                    "is more than one class",
                    found=_listed([self.describe(label) for label in sorted(found)]),
                    fix="Give the number or a longer name.",
                )
        raise self._unknown(text)

    def _matches(self, wanted: str) -> Iterator[set[int]]:
        """Classes with that first name; with that synonym; with a name that begins like that."""
        plain = [[_plain(name) for name in names] for names in self.names]
        yield {i for i, names in enumerate(plain) if names[:1] == [wanted]}
        yield {i for i, names in enumerate(plain) if wanted in names}
        yield {
            i
            for i, names in enumerate(plain)
            if wanted and any(n.startswith(wanted) for n in names)
        }

    def _in_range(self, label: int) -> int:
        if 0 <= label < self.num_classes:
            return label
        last = self.num_classes - 1
        nearest = min(max(label, 0), last)
        raise RegscaleError(
            f"class {label}",
            f"is not between 0 and {last}",
            found=f"{label}; the nearest is {self.describe(nearest)}",
            fix="Give a number in this range or a name.",
        )

    def _unknown(self, text: str) -> RegscaleError:
        owner = {_plain(name): i for i, names in enumerate(self.names) for name in names}
        close = difflib.get_close_matches(_plain(text), owner, n=3, cutoff=0.5)
        last = self.num_classes - 1
        nearest = [f"{owner[name]} {name}" for name in close]
        return RegscaleError(
            f"class {text!r}",
            "is not the name of a class",
            found=f"{_listed(nearest)} as the nearest" if nearest else "nothing like it",
            fix=f"Give one of the names, or a number from 0 to {last}.",
        )


def build(config: Config) -> ClassLabel:
    return ClassLabel(config)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _listed(items: list[str]) -> str:
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")


def _read(names: str | None, num_classes: int) -> list[list[str]]:
    """The names of each class, in the order of the labels."""
    if names is None:
        return [[] for _ in range(num_classes)]
    known = {path.stem: path for path in NAMES.glob("*.txt")}
    path = known.get(names, Path(names).expanduser())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            "names",
            f"is {', '.join(sorted(known))} or a readable text file",
            found=repr(names),
            fix="Give a file with the name of one class a line, or null.",
        ) from error
    if len(lines) != num_classes:
        raise Invalid(
            "names",
            f"has a line for each of num_classes={num_classes} classes",
            found=f"{len(lines)} lines in {names}",
            fix=f"Set num_classes={len(lines)}, or choose other names.",
        )
    return [_synonyms(line) for line in lines]


def _synonyms(line: str) -> list[str]:
    """The names of a line; a leading WordNet id is the last synonym."""
    synset, rest = SYNSET.match(line), SYNSET.sub("", line, count=1)
    names = [name.strip() for name in rest.split(",") if name.strip()]
    return [*names, synset.group().strip()] if synset else names
