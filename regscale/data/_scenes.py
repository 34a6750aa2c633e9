"""The captions of ShapeCaps, which of them are held out, and a scene for each.

A scene is a pure function of (seed, split, kinds, index): one of the kind's captions, all equally
likely, then by chance whatever the caption does not mention. What is held out is in no other scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, permutations, product
from typing import NamedTuple, TypeVar

import numpy as np

from regscale import chance
from regscale.data._shapes import (
    BITS,
    BLOCKED,
    BORDER,
    CANVAS,
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    Figure,
    Mask,
    offsets,
    relations,
)

T = TypeVar("T")

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's
COMPOUND = "compound"
ALL_KINDS = (*KINDS, COMPOUND)
SOURCES = ("short", "full", "relation")  # of the three captions of a picture

WORDS = {1: "a", 2: "two", 3: "three", 4: "four"}
PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
PHRASES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}

HELD_OUT_PAIRS = frozenset((colour, SHAPES[i % 5]) for i, colour in enumerate(COLOURS))
HELD_OUT_COUNTS = frozenset({("circle", 3), ("square", 4), ("triangle", 2)})
_chosen = {
    (first, second, relation)
    for i, (first, second) in enumerate(permutations(SHAPES, 2))
    for j, relation in enumerate(RELATIONS)
    if (i + j) % 5 == 0
}
HELD_OUT_RELATIONS = frozenset(_chosen | {(b, a, INVERSE[r]) for a, b, r in _chosen})

SMALL = 3  # figures; from so many on they are 8 or 9 pixels large instead of 8 to 11
MAX_FIGURES = 4
NUMBERS = 32  # random numbers that are drawn at a time


class Group(NamedTuple):
    """`number` figures of one shape; without a colour any will do."""

    shape: str
    number: int = 1
    colour: str = ""

    @property
    def text(self) -> str:
        noun = PLURALS[self.shape] if self.number > 1 else self.shape
        return " ".join(filter(None, (WORDS[self.number], self.colour, noun)))


class Prompt(NamedTuple):
    """A caption of one kind and what a picture must hold; `relation` is of the first group to the
    second."""

    kind: str
    groups: tuple[Group, ...]
    relation: str = ""

    @property
    def text(self) -> str:
        word = PHRASES[self.relation] if self.relation else "and"
        return f" {word} ".join(group.text for group in self.groups)

    @property
    def held_out(self) -> bool:
        """Whether it names something that no training scene has."""
        shapes = tuple(group.shape for group in self.groups)
        return (
            any((group.colour, group.shape) in HELD_OUT_PAIRS for group in self.groups)
            or any((group.shape, group.number) in HELD_OUT_COUNTS for group in self.groups)
            or (*shapes, self.relation) in HELD_OUT_RELATIONS
        )


@cache
def captions(kind: str, *, held_out: bool) -> tuple[Prompt, ...]:
    """All captions of a kind that are held out, or all that are not."""
    return tuple(each for each in _captions(kind) if each.held_out is held_out)


def _captions(kind: str) -> Iterator[Prompt]:
    pairs = list(permutations(SHAPES, 2))
    colours = list(permutations(COLOURS, 2))
    if kind == "single_object":
        yield from (Prompt(kind, (Group(shape),)) for shape in SHAPES)
    elif kind == "two_object":
        yield from (Prompt(kind, (Group(a), Group(b))) for a, b in pairs)
    elif kind == "counting":
        numbers = range(2, MAX_FIGURES + 1)
        yield from (Prompt(kind, (Group(s, n),)) for s, n in product(SHAPES, numbers))
    elif kind == "colors":
        yield from (Prompt(kind, (Group(s, 1, c),)) for c, s in product(COLOURS, SHAPES))
    elif kind == "position":
        for (a, b), relation in product(pairs, RELATIONS):
            yield Prompt(kind, (Group(a), Group(b)), relation)
    elif kind == "color_attr":
        for (a, b), (c, d) in product(pairs, colours):
            yield Prompt(kind, (Group(a, 1, c), Group(b, 1, d)))
    else:
        assert kind == COMPOUND, "one of ALL_KINDS"
        numbers = range(1, MAX_FIGURES)
        counts = [(n, m) for n, m in product(numbers, numbers) if n + m <= MAX_FIGURES]
        for (n, m), (a, b), (c, d), r in product(counts, pairs, colours, RELATIONS):
            yield Prompt(kind, (Group(a, n, c), Group(b, m, d)), r)


@dataclass(frozen=True, slots=True)
class Scene:
    """A caption, the same groups with all their colours, and where each figure lies."""

    prompt: Prompt
    groups: tuple[Group, ...]
    figures: tuple[Figure, ...]

    @property
    def captions(self) -> tuple[str, str, str]:
        """By SOURCES; the last is the full one again where no relation is the only one."""
        full = Prompt(self.prompt.kind, self.groups)
        return self.prompt.text, full.text, full._replace(relation=self._relation()).text

    def _relation(self) -> str:
        if self.prompt.relation or len(self.groups) == 1:
            return self.prompt.relation
        first, second = self.figures
        found = relations(first.box, second.box)
        return next((name for name, bit in BITS.items() if found == bit), "")


def scene(
    index: int, *, seed: int, split: str, kinds: tuple[str, ...], held_out: bool = False
) -> Scene:
    """Scene `index`; the kinds take turns."""
    numbers = _numbers(index, seed=seed, purpose=f"shapecaps/{split}")
    prompt = _one(captions(kinds[index % len(kinds)], held_out=held_out), next(numbers))
    return _completed(prompt, numbers)


def scene_of(prompt: Prompt, index: int, *, seed: int) -> Scene:
    """One of the scenes that a caption describes."""
    return _completed(prompt, _numbers(index, seed=seed, purpose="shapecaps/truth"))


def _completed(prompt: Prompt, numbers: Iterator[float]) -> Scene:
    groups = _coloured(prompt.groups, numbers)
    while True:
        figures = _placed(groups, prompt.relation, numbers, exactly=prompt.kind == "position")
        if figures:
            return Scene(prompt, groups, figures)


def _numbers(index: int, *, seed: int, purpose: str) -> Iterator[float]:
    for block in count():
        words = f"{purpose}/{block}"
        yield from chance.uniform((NUMBERS,), seed=seed, purpose=words, counter=index).tolist()


def _one(choices: Sequence[T], number: float) -> T:
    return choices[int(number * len(choices))]


def _coloured(groups: tuple[Group, ...], numbers: Iterator[float]) -> tuple[Group, ...]:
    """Colours for the groups without one: all differ, and no pair is held out."""
    made: list[Group] = []
    for group in groups:
        taken = tuple(other.colour for other in made)
        colour = group.colour or _one(_free_colours(group.shape, taken), next(numbers))
        made.append(group._replace(colour=colour))
    return tuple(made)


@cache
def _free_colours(shape: str, taken: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(c for c in COLOURS if c not in taken and (c, shape) not in HELD_OUT_PAIRS)


def _placed(
    groups: tuple[Group, ...], relation: str, numbers: Iterator[float], *, exactly: bool
) -> tuple[Figure, ...]:
    """The figures one after the other, each at one of the places that are left; () for none."""
    shapes = [(group.shape, group.colour) for group in groups for _ in range(group.number)]
    choices = 2 if len(shapes) >= SMALL else 4
    figures: list[Figure] = []
    for shape, colour in shapes:
        size = 8 + int(next(numbers) * choices)
        side = CANVAS - 2 * BORDER - size + 1  # places of its square along each side
        free = np.ones((side, side), dtype=np.bool_)
        for other in figures:
            allowed = _allowed(other.shape, shape, relation, exactly=exactly)
            codes = offsets((other.shape, other.size), (shape, size))
            top, left = CANVAS - 1 + BORDER - other.top, CANVAS - 1 + BORDER - other.left
            free &= allowed[codes[top : top + side, left : left + side]]
        places = np.flatnonzero(free)
        if not len(places):
            return ()
        top, left = divmod(int(places[int(next(numbers) * len(places))]), side)
        figures.append(Figure(shape, colour, size, top + BORDER, left + BORDER))
    return tuple(figures)


@cache
def _allowed(first: str, second: str, relation: str, *, exactly: bool) -> Mask:
    """(17,) whether two figures may lie so, by the codes of `offsets`.

    Of different shapes, what is asked for holds (with `exactly` it alone) and nothing that is held
    out beside it.
    """
    codes = np.arange(BLOCKED + 1)
    if first == second:
        return codes < BLOCKED
    asked = BITS[relation] if relation else 0
    if exactly:
        alone: Mask = codes == asked
        return alone
    refused = sum(BITS[r] for a, b, r in HELD_OUT_RELATIONS if (a, b) == (first, second))
    found: Mask = (codes < BLOCKED) & (codes & asked == asked) & (codes & refused & ~asked == 0)
    return found
