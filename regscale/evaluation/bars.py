"""Figures beside their noise floors as a picture: a pair of bars each, on a scale of its own."""

from PIL import Image, ImageDraw, ImageFont

from regscale.evaluation.compare import higher_is_better
from regscale.evaluation.report import Entry, Evaluation

BAR, NUMBERS, GAP = 400, 200, 12  # pixels across
TOP, ROW, THICK = 40, 52, 14  # pixels down
SIZE = 13  # of letters
OURS, REAL, FAINT = "#1f77b4", "#9a9a9a", "#666666"


def bars(found: Evaluation) -> Image.Image:
    """A row of each figure; a thin line over a bar is its spread."""
    font = ImageFont.load_default(SIZE)
    left = 2 * GAP + int(max(font.getlength(entry.name) for entry in found.entries))
    left = max(left, 2 * GAP + int(font.getlength("higher is better")))
    size = (left + BAR + NUMBERS, TOP + ROW * len(found.entries))
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.font = font
    pen.text((left, GAP), "these pictures", fill=OURS)
    pen.text((left + 110, GAP), "noise floor: real data against real data", fill=FAINT)
    for number, entry in enumerate(found.entries):
        _row(pen, entry, left, TOP + ROW * number)
    return picture


def _row(pen: ImageDraw.ImageDraw, entry: Entry, left: int, top: int) -> None:
    value, floor, spread = entry.value, entry.noise_floor, entry.spread or 0.0
    ends = (0.0, value - spread, value + spread, floor or 0.0)
    low, high = min(ends), max(ends)

    def across(number: float) -> float:
        return left + (number - low) * BAR / (high - low or 1.0)

    second, numbers = top + THICK + 4, left + BAR + GAP
    better = "higher" if higher_is_better(entry.name) else "lower"
    pen.text((GAP, top - 1), entry.name, fill="black")
    pen.text((GAP, second - 1), f"{better} is better", fill=FAINT)
    _bar(pen, across(0), across(value), top, OURS)
    if spread:
        middle = top + THICK // 2
        pen.line((across(value - spread), middle, across(value + spread), middle), fill="black")
    told = f"{value:.4g}" + (f" ± {spread:.2g}" if spread else "")
    pen.text((numbers, top - 1), told, fill=OURS)
    if floor is None:
        pen.text((left, second - 1), f"none: {entry.no_floor or 'not measured'}", fill=FAINT)
        return
    _bar(pen, across(0), across(floor), second, REAL)
    pen.text((numbers, second - 1), f"{floor:.4g}", fill=FAINT)


def _bar(pen: ImageDraw.ImageDraw, start: float, stop: float, top: int, colour: str) -> None:
    """At least a line, so that a floor of 0 is told from none."""
    start, stop = sorted((start, stop))
    pen.rectangle((start, top, max(stop, start + 1), top + THICK), fill=colour)
