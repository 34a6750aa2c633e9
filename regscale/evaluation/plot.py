"""Lines of numbers as a picture, drawn with Pillow: axes, marks, a name for each line."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN, SIZE = 640, 360, 72, 13
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")

Points = Sequence[tuple[float, float]]


def panels(
    charts: Mapping[str, Mapping[str, Points]], *, x_name: str, columns: int = 1
) -> Image.Image:
    """Charts by their title, in rows of `columns`; each is lines by their names."""
    rows = -(-len(charts) // columns)
    sheet = Image.new("RGB", (WIDTH * min(columns, len(charts)), HEIGHT * rows), "white")
    for place, (title, lines) in enumerate(charts.items()):
        row, column = divmod(place, columns)
        picture = chart(lines, title=title, x_name=x_name)
        sheet.paste(picture, (WIDTH * column, HEIGHT * row))
    return sheet


def chart(lines: Mapping[str, Points], *, title: str, x_name: str) -> Image.Image:
    """One pair of axes; points of a line are joined in the order of x."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    draw.font = ImageFont.load_default(SIZE)
    xs, ys = ([p[axis] for points in lines.values() for p in points] for axis in (0, 1))
    (left, right), (low, high) = _range(xs), _range(ys)
    low, high = low - (high - low) / 20, high + (high - low) / 20

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (point[0] - left) / (right - left), (point[1] - low) / (high - low)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    for share in range(5):
        x, y = left + (right - left) * share / 4, low + (high - low) * share / 4
        (across, bottom), (_, up) = place((x, low)), place((left, y))
        draw.line((MARGIN, up, WIDTH - MARGIN, up), fill="#e0e0e0")
        draw.text((across, bottom + 6), f"{x:,.5g}", fill="black", anchor="ma")
        draw.text((MARGIN - 6, up), f"{y:.4g}", fill="black", anchor="rm")
    draw.rectangle((MARGIN, MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN), outline="black")
    draw.text((MARGIN, 8), title, fill="black")
    draw.text((WIDTH // 2, HEIGHT - 24), x_name, fill="black", anchor="ma")
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        ordered = [place(point) for point in sorted(points)]
        for a, b in pairwise(ordered):
            draw.line((*a, *b), fill=colour, width=2)
        for x, y in ordered:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((MARGIN + 8 + 150 * (number % 3), 26 + 14 * (number // 3)), name, fill=colour)
    return picture


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
