"""Lines of numbers as a picture, drawn with Pillow: axes, marks, a name for each line."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 640, 360, 56
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")

Points = Sequence[tuple[float, float]]


def panels(charts: Mapping[str, Mapping[str, Points]], *, x_name: str) -> Image.Image:
    """Charts by their title, below each other; each is lines by their names."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(charts)), "white")
    for place, (title, lines) in enumerate(charts.items()):
        sheet.paste(chart(lines, title=title, x_name=x_name), (0, HEIGHT * place))
    return sheet


def chart(lines: Mapping[str, Points], *, title: str, x_name: str) -> Image.Image:
    """One pair of axes; points of a line are joined in the order of x."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    xs, ys = ([p[axis] for points in lines.values() for p in points] for axis in (0, 1))
    (left, right), (low, high) = _range(xs), _range(ys)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (point[0] - left) / (right - left), (point[1] - low) / (high - low)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    corners = (MARGIN, MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN)
    draw.rectangle(corners, outline="black")
    for share in range(5):
        x, y = left + (right - left) * share / 4, low + (high - low) * share / 4
        draw.text((place((x, low))[0] - 12, HEIGHT - MARGIN + 4), f"{x:.3g}", fill="black")
        draw.text((4, place((left, y))[1] - 6), f"{y:.4g}", fill="black")
    draw.text((MARGIN, 8), title, fill="black")
    draw.text((WIDTH // 2 - 40, HEIGHT - 24), x_name, fill="black")
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        ordered = [place(point) for point in sorted(points)]
        for a, b in pairwise(ordered):
            draw.line((*a, *b), fill=colour, width=2)
        for x, y in ordered:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((MARGIN + 8 + 150 * (number % 3), 22 + 12 * (number // 3)), name, fill=colour)
    return picture


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
