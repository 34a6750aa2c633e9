"""Shares with their intervals as a picture: a row each, a dot and a line from 0 to 1."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from benchmarks._evidence_figures import Curve, Result
from benchmarks._evidence_study import ARMS
from regscale.evaluation.plot import COLOURS, chart
from regscale.evaluation.rates import Rate
from regscale.evaluation.shapecaps import Table

WIDTH, LEFT, RIGHT, ROW, TOP = 780, 300, 24, 18, 36


def shares(rows: Mapping[str, Mapping[str, Rate]], *, title: str) -> Image.Image:
    """Named rows of named shares, each name of a share with its colour."""
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    bottom = TOP + ROW * len(rows)
    picture = Image.new("RGB", (WIDTH, bottom + 40), "white")
    draw = ImageDraw.Draw(picture)

    def across(value: float) -> float:
        return LEFT + value * (WIDTH - LEFT - RIGHT)

    draw.text((8, 8), title, fill="black")
    for quarter in range(5):
        x = across(quarter / 4)
        draw.line((x, TOP, x, bottom), fill="#dddddd")
        draw.text((x - 10, bottom + 4), f"{quarter / 4:.2f}", fill="black")
    for place, (row, found) in enumerate(rows.items()):
        draw.text((8, TOP + ROW * place + 3), row, fill="black")
        for number, name in enumerate(names):
            if name in found:
                rate = found[name]
                y = TOP + ROW * place + ROW * (number + 1) / (len(names) + 1)
                colour = COLOURS[number % len(COLOURS)]
                draw.line((across(rate.low), y, across(rate.high), y), fill=colour, width=2)
                x = across(rate.value)
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    for number, name in enumerate(names):
        draw.text((LEFT + 150 * number, bottom + 20), name, fill=COLOURS[number % len(COLOURS)])
    return picture


def of_tables(tables: Mapping[str, Table], *, title: str) -> Image.Image:
    """Seen, held-out and shuffled prompts of each."""
    rows = {}
    for name, table in tables.items():
        rates = {"seen": table.overall()}
        if table.kinds("held_out"):
            rates["held out"] = table.overall("held_out")
        rates["shuffled prompts"] = table.overall(rule="shuffled")
        rows[name] = rates
    return shares(rows, title=title)


def losses(results: Sequence[Result]) -> Image.Image:
    """The loss of the latents while the arms were trained, the mean of their seeds."""
    lines = {arm: _mean([each.curve for each in results if each.run.arm == arm]) for arm in ARMS}
    told = {arm: curve for arm, curve in lines.items() if curve}
    return chart(told, title="loss of the latents, mean of seeds", x_name="step")


def _mean(curves: Sequence[Curve]) -> Curve:
    """At the steps that all curves have."""
    tables = [dict(curve) for curve in curves]
    steps = [step for step in tables[0] if all(step in t for t in tables)] if tables else []
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in steps]
