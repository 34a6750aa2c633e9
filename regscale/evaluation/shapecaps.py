"""The score of pictures that were drawn for ShapeCaps' captions: GenEval's rules and stricter ones.

`loose` is GenEval (2310.11513): what the caption names is there. `strict` is loose without any
other component. Overall is the mean of the six kinds; compound captions are reported apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

from PIL.Image import Image
from torch import Tensor

from regscale import chance
from regscale.data._scenes import ALL_KINDS, COMPOUND, KINDS, Prompt
from regscale.data._shapes import BITS, relations
from regscale.errors import RegscaleError
from regscale.evaluation.rates import Rate, combined, mean, wilson
from regscale.evaluation.shapes import Component, detect
from regscale.evaluation.sheet import Row
from regscale.evaluation.sheet import sheet as sheet_of

EXACT = ("counting", COMPOUND)  # kinds in which more of a shape than asked for is wrong
CHANCE = dict(zip(KINDS, (0.198, 0.100, 0.081, 0.032, 0.035, 0.003), strict=True))
"""What a perfect renderer scores that ignores seen captions (docs/shapecaps.md)."""
Rule = Literal["loose", "strict"]
Split = Literal["seen", "held_out"]


class Verdict(NamedTuple):
    """Whether a picture shows its caption."""

    loose: bool
    strict: bool


def judge(found: Sequence[Component], prompt: Prompt) -> Verdict:
    """The verdict on the components of one picture, those that fit best first."""
    loose = _shows(found, prompt)
    expected = sum(group.number for group in prompt.groups)
    return Verdict(loose, loose and len(found) == expected)


def _shows(found: Sequence[Component], prompt: Prompt) -> bool:
    """GenEval's `evaluate`: of each shape the best `number` are looked at."""
    matched: list[Sequence[Component]] = []
    for group in prompt.groups:
        alike = [each for each in found if each.shape == group.shape]
        best = alike[: group.number]
        if len(best) < group.number or (prompt.kind in EXACT and len(alike) > group.number):
            return False
        if group.colour and any(each.colour != group.colour for each in best):
            return False
        matched.append(best)
    if not prompt.relation:
        return True
    bit = BITS[prompt.relation]
    return all(relations(a.box, b.box) & bit for a, b in product(*matched))


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind and split: how many pictures, and how many of them are right."""

    number: int
    loose: int
    strict: int
    shuffled: int  # loose, each picture with the caption of another of the same cell


COUNTED = ("number", "loose", "strict", "shuffled")


@dataclass(frozen=True, slots=True)
class Table:
    """Counts by (kind, split)."""

    cells: Mapping[tuple[str, Split], Cell]

    def rate(self, kind: str, split: Split = "seen", *, rule: str = "loose") -> Rate:
        """One kind; `rule` is loose, strict or shuffled."""
        cell = self.cells[kind, split]
        return wilson(getattr(cell, rule), cell.number)

    def kinds(self, split: Split) -> list[str]:
        """Of the six, those with pictures of a split."""
        return [kind for kind in KINDS if (kind, split) in self.cells]

    def overall(self, split: Split = "seen", *, rule: str = "loose") -> Rate:
        """The mean of the kinds: of the six for seen, of those with held-out captions else."""
        return mean([self.rate(kind, split, rule=rule) for kind in self.kinds(split)])

    def gap(self, *, rule: str = "loose") -> Rate:
        """Seen less held-out, the mean of the kinds that have both."""
        both = [kind for kind in self.kinds("held_out") if (kind, "seen") in self.cells]
        seen = mean([self.rate(kind, rule=rule) for kind in both])
        held_out = mean([self.rate(kind, "held_out", rule=rule) for kind in both])
        return combined([seen, held_out], [1, -1])

    def values(self) -> list[dict[str, Any]]:
        """The counts as a JSON file holds them; `Table.of` reads them."""
        return [{"kind": k, "split": s, **asdict(cell)} for (k, s), cell in self.cells.items()]

    @classmethod
    def of(cls, values: Iterable[Mapping[str, Any]]) -> Table:
        """The table whose `values` these are."""
        return cls({(v["kind"], v["split"]): Cell(**{k: v[k] for k in COUNTED}) for v in values})

    def report(self) -> str:
        """All of it as text: shares and 95% intervals."""
        lines = [_line("", "number", "loose", "strict", "shuffled", "chance")]
        for split in ("seen", "held_out"):
            names: list[str] = [k for k in ALL_KINDS if (k, split) in self.cells]
            lines += [self._row(kind, split) for kind in names]
            if self.kinds(split):
                rates = [self.overall(split, rule=rule) for rule in ("loose", "strict", "shuffled")]
                lines.append(_line(f"{split} overall, {len(self.kinds(split))} kinds", "", *rates))
        if any((kind, "seen") in self.cells for kind in self.kinds("held_out")):
            rates = [self.gap(rule=rule) for rule in ("loose", "strict")]
            lines.append(_line("gap, seen less held out", "", *rates, ""))
        return "\n".join(lines)

    def _row(self, kind: str, split: Split) -> str:
        rates = [self.rate(kind, split, rule=rule) for rule in ("loose", "strict", "shuffled")]
        chance = f"{CHANCE[kind]:.3f}" if split == "seen" and kind in CHANCE else ""
        return _line(f"{split} {kind}", f"{self.cells[kind, split].number:,}", *rates, chance)


def _line(*columns: object) -> str:
    name, number, *rates = map(str, columns)
    return "  ".join([f"{name:26}", f"{number:>7}", *(f"{rate:22}" for rate in rates)]).rstrip()


def score(images: Tensor, prompts: Sequence[Prompt], *, seed: int = 0) -> Table:
    """The table of (B, 3, H, W) uint8 pictures drawn for these captions.

    `seed` is of the control: the pictures of each cell judged by one another's captions.
    """
    if not len(images) == len(prompts) > 0:
        raise RegscaleError(
            "ShapeCaps' score",
            "needs a picture for each prompt",
            found=f"{len(images):,} pictures and {len(prompts):,} prompts",
            fix="Give them in the same order, at least one.",
        )
    return table(detect(images), prompts, seed=seed)


def table(
    found: Sequence[Sequence[Component]], prompts: Sequence[Prompt], *, seed: int = 0
) -> Table:
    """The same of components that were found before."""
    cells = {}
    for cell, mine in _cells(prompts).items():
        verdicts = [judge(found[i], prompts[i]) for i in mine]
        others = _others(mine, seed=seed)
        cells[cell] = Cell(
            number=len(mine),
            loose=sum(each.loose for each in verdicts),
            strict=sum(each.strict for each in verdicts),
            shuffled=sum(judge(found[i], prompts[j]).loose for i, j in others),
        )
    return Table(cells)


def _cells(prompts: Sequence[Prompt]) -> dict[tuple[str, Split], list[int]]:
    """The places of each kind and split."""
    places: dict[tuple[str, Split], list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[prompt.kind, "held_out" if prompt.held_out else "seen"].append(place)
    return places


def _others(places: Sequence[int], *, seed: int) -> Iterable[tuple[int, int]]:
    """Each place with another one: the next of a shuffled ring."""
    order = chance.permutation(len(places), seed=seed, purpose="shapecaps/shuffled").tolist()
    following = [*order[1:], order[0]]
    return [(places[i], places[j]) for i, j in zip(order, following, strict=True)]


def sheet(images: Tensor, prompts: Sequence[Prompt], *, columns: int = 8) -> Image:
    """A row of each kind and split: its first `columns` pictures above their prompts, loosely wrong
    ones in red."""
    rows = []
    for (kind, split), places in _cells(prompts).items():
        mine = places[:columns]
        found = zip(detect(images[mine]), mine, strict=True)
        rows.append(
            Row(
                title=f"{kind}, {split.replace('_', ' ')}",
                images=images[mine],
                names=[prompts[place].text for place in mine],
                right=[judge(each, prompts[place]).loose for each, place in found],
            )
        )
    return sheet_of(rows)
