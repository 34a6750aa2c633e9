"""Figures of several evaluations side by side, ranked only where they may be."""

from collections.abc import Collection, Sequence

from regscale.errors import RegscaleError
from regscale.evaluation.provenance import differences
from regscale.evaluation.report import Entry, Evaluation

HIGHER = ("IS", "precision", "recall", "CLIPScore", "label accuracy", "ShapeCaps", "GenEval")

LEVELS = ("precision", "recall", "FDr")  # what real data reaches, far from 0: no measure of a gap


def higher_is_better(name: str) -> bool:
    """Scores grow with quality, distances fall."""
    return name.startswith(HIGHER)


def floor_is_a_value(name: str) -> bool:
    """Whether the noise floor is a value of the figure, as real data has it; else a difference."""
    return not higher_is_better(name) or name.startswith(LEVELS)


def compare(
    found: Sequence[Evaluation], *, despite: Collection[str] = (), anyway: bool = False
) -> str:
    """A table of each common figure, the best first.

    Refused where figures differ in a field of their provenance that is not in `despite`; `anyway`
    ranks them all the same and tells the fields below each figure.
    """
    if len(found) < 2:
        raise RegscaleError("compare", "needs two evaluations", found=len(found), fix="Give more.")
    names = [e.name for e in found[0].entries if all(other.entry(e.name) for other in found)]
    if not names:
        raise RegscaleError(
            "compare",
            "finds no figure that all evaluations have",
            found="; ".join(f"{e.where}: {', '.join(x.name for x in e.entries)}" for e in found),
            fix="Evaluate with the same suite.",
        )
    lines: list[str] = []
    for name in names:
        rows = [(each.where, _entry(each, name)) for each in found]
        apart = _apart(name, rows, despite, anyway=anyway)
        rows.sort(key=lambda row: row[1].value, reverse=higher_is_better(name))
        lines += [f"{name} ({'higher' if higher_is_better(name) else 'lower'} is better)"]
        lines += [_line(place, where, entry) for place, (where, entry) in enumerate(rows, 1)]
        lines += [_closeness(rows)] if _closeness(rows) else []
        lines += [f"    not alike: {text}" for text in apart]
    return "\n".join(lines)


def _entry(found: Evaluation, name: str) -> Entry:
    entry = found.entry(name)
    assert entry is not None, "names are those that all have"
    return entry


def _apart(
    name: str, rows: Sequence[tuple[str, Entry]], despite: Collection[str], *, anyway: bool
) -> list[str]:
    """What differs and is let pass; anything else is an error."""
    first_place, first = rows[0]
    told: dict[str, str] = {}
    for where, entry in rows[1:]:
        for field, (a, b) in differences(first.provenance, entry.provenance).items():
            told.setdefault(field, f"{field} is {a} in {first_place} and {b} in {where}")
            if not anyway and field not in despite:
                raise RegscaleError(
                    f"{name}: {first_place} and {where}",
                    f"cannot be ranked: they differ in {field}",
                    found=f"{a} and {b}",
                    fix=f"Evaluate both alike, or rank them despite it: --despite {field}.",
                )
    return list(told.values())


def _line(place: int, where: str, entry: Entry) -> str:
    floor = "not measured" if entry.noise_floor is None else f"{entry.noise_floor:.4g}"
    spread = "" if entry.spread is None else f" ± {entry.spread:.2g}"
    checkpoint = entry.provenance.get("checkpoint") or entry.provenance.get("pictures")
    return f"  {place}  {entry.value:.4f}{spread}  noise floor {floor}  {where}  {checkpoint}"


def _closeness(rows: Sequence[tuple[str, Entry]]) -> str:
    """A warning where the first two are nearer to each other than real data is to itself."""
    (_, best), (_, second) = rows[:2]
    floor, gap = best.noise_floor, abs(best.value - second.value)
    if floor is None or gap >= floor or best.name.startswith(LEVELS):
        return ""
    return f"    the first two are {gap:.4g} apart, less than the noise floor"
