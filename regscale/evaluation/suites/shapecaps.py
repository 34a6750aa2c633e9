"""ShapeCaps: captions of every kind, seen and held out, judged by the detector that comes along."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from regscale.config import Invalid
from regscale.data._scenes import ALL_KINDS, Prompt
from regscale.data._shapes import CANVAS
from regscale.data.shapecaps import held_out_in, prompts, truth
from regscale.errors import RegscaleError
from regscale.evaluation.collecting import Place
from regscale.evaluation.metrics import Figure
from regscale.evaluation.pictures import Pictures
from regscale.evaluation.rates import Rate
from regscale.evaluation.shapecaps import Split, Table, sheet, table
from regscale.evaluation.shapes import CHUNK, Component, detect
from regscale.evaluation.suites import Outcome
from regscale.evaluation.suites._classes import seeds_of
from regscale.files import replacing
from regscale.sampling.many import Wanted
from regscale.sampling.pictures import save_png

DETECTOR = "shapecaps-detector-1"  # count on when its rules change
COLUMNS = 8  # pictures of each kind and split in the sheet
COUNTS = "counts.json"  # of right pictures, by kind and split


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Captions of each kind and split; the seed is of the captions and, counted on, of images."""

    num_prompts: int = 100
    kinds: tuple[str, ...] = ALL_KINDS
    seed: int = 0
    texts: Literal["own", "empty"] = "own"  # empty: drawn without one, judged alike

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in ALL_KINDS]
        if unknown or not self.kinds or self.num_prompts < 1:
            raise Invalid(
                "kinds" if self.num_prompts > 0 else "num_prompts",
                f"are of {', '.join(ALL_KINDS)}, with 1 prompt or more of each",
                found=f"{list(self.kinds)}, {self.num_prompts}",
                fix="Leave it out for all of them.",
            )


class ShapeCapsSuite:
    """Needs no file."""

    def __init__(self, config: Config) -> None:
        self.config = config
        number = config.num_prompts
        splits: list[tuple[str, Split]] = [(kind, "seen") for kind in config.kinds]
        splits += [(kind, "held_out") for kind in config.kinds if held_out_in(kind)]
        self.prompts: list[Prompt] = [
            each
            for kind, split in splits
            for each in prompts(kind, split, number=number, seed=config.seed)
        ]
        self.labels = f"ShapeCaps prompts, {number} each of {', '.join(config.kinds)}"
        if config.texts == "empty":
            self.labels += ", drawn for the empty text"
        self.seeds = seeds_of(len(self.prompts), config.seed)

    def wanted(self, num_classes: int | None) -> list[Wanted]:  # noqa: ARG002
        seed, empty = self.config.seed, self.config.texts == "empty"
        texts = ["" if empty else each.text for each in self.prompts]
        return [Wanted(text, seed + index) for index, text in enumerate(texts)]

    def measure(self, pictures: Pictures, place: Place) -> Outcome:
        self._check(pictures)
        own = pictures.share(place.cluster)
        parts = place.cluster.gather([detect(images) for images in pictures.batches(own)])
        found: list[list[Component]] = [each for part in parts for batch in part for each in batch]
        scored = table(found, self.prompts[: len(found)], seed=self.config.seed)
        place.cluster.from_first(lambda: self._write(scored, pictures, place.folder))
        number, size = len(found), pictures.shape[1]
        real = place.cluster.from_first(lambda: [self._real(k, number, size) for k in (0, 1)])
        return Outcome(figures=_figures(scored, real), text=scored.report())

    def _check(self, pictures: Pictures) -> None:
        number, size = len(pictures), pictures.shape[1]
        if number > len(self.prompts) or size % CANVAS or pictures.shape[2] != size:
            raise RegscaleError(
                f"shapecaps: {pictures.name}",
                f"holds a square picture of each prompt, {CANVAS} pixels a side or doubled",
                found=f"{number:,} of {size} x {pictures.shape[2]} pixels; "
                f"{len(self.prompts):,} prompts",
                fix="Give num_prompts, kinds and seed as they were when the pictures were drawn.",
            )

    def _real(self, seed: int, number: int, size: int) -> Table:
        """Of right pictures of the same captions, for the noise floor."""
        captions = self.prompts[:number]
        parts = [captions[i : i + CHUNK] for i in range(0, number, CHUNK)]
        found = [each for part in parts for each in detect(truth(part, seed=seed, size=size))]
        return table(found, captions, seed=self.config.seed)

    def _write(self, scored: Table, pictures: Pictures, folder: Path) -> None:
        """The counts, and a sheet of the first prompts of each kind and split."""
        with replacing(folder / COUNTS) as file:
            file.write((json.dumps(scored.values(), indent=1) + "\n").encode())
        number, end = self.config.num_prompts, len(pictures)
        starts = range(0, end, number)
        places = [i for s in starts for i in range(s, min(s + min(number, COLUMNS), end))]
        images = torch.cat([next(pictures.batches(range(i, i + 1))) for i in places])
        made = sheet(images, [self.prompts[i] for i in places], columns=COLUMNS)
        save_png(made, folder / "prompts.png", {"prompts": self.labels})


def _figures(scored: Table, real: Sequence[Table]) -> list[Figure]:
    """Overall of each split and rule; the floor lies between two sets of right pictures."""
    found = []
    splits: tuple[Split, ...] = ("seen", "held_out")
    for split in splits:
        kinds = scored.kinds(split)
        number = sum(scored.cells[kind, split].number for kind in kinds)
        if not kinds:
            continue
        for rule in ("loose", "strict"):
            rate: Rate = scored.overall(split, rule=rule)
            a, b = (each.overall(split, rule=rule).value for each in real)
            found.append(
                Figure(
                    name=f"ShapeCaps {split} {rule}",
                    value=rate.value,
                    num_samples=number,
                    evaluator=DETECTOR,
                    spread=(rate.high - rate.low) / 2,
                    noise_floor=abs(a - b),
                    noise_samples=number,
                )
            )
    return found


def build(config: Config) -> ShapeCapsSuite:
    return ShapeCapsSuite(config)
