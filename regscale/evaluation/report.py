"""What an evaluation found, as `evaluation.json` and as a table; every figure with its origin."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regscale.errors import RegscaleError
from regscale.evaluation.metrics import Figure
from regscale.evaluation.provenance import Making, provenance
from regscale.files import replacing

FILE, FORMAT = "evaluation.json", 1
OWN = ("name", "value", "spread", "noise_floor", "noise_samples", "no_floor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A figure as a file holds it."""

    name: str
    value: float
    spread: float | None
    noise_floor: float | None
    noise_samples: int | None
    provenance: dict[str, Any]
    no_floor: str = ""  # why there is no noise floor


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One suite on one set of pictures."""

    suite: str
    entries: tuple[Entry, ...]
    where: str = ""

    def entry(self, name: str) -> Entry | None:
        """The figure of that name."""
        return next((each for each in self.entries if each.name == name), None)


def evaluation(suite: str, making: Making, figures: Sequence[Figure]) -> Evaluation:
    """Figures with everything that is known of the pictures."""
    entries = [
        Entry(**{key: getattr(f, key) for key in OWN}, provenance=provenance(making, f))
        for f in figures
    ]
    return Evaluation(suite=suite, entries=tuple(entries))


def write(found: Evaluation, folder: Path) -> Path:
    """`evaluation.json` of a folder, replaced whole."""
    figures = [asdict(each) for each in found.entries]
    values = {"format": FORMAT, "suite": found.suite, "figures": figures}
    with replacing(folder / FILE) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())
    return folder / FILE


def read(path: Path) -> Evaluation:
    """Of an `evaluation.json`, or of the folder that holds one."""
    file = path / FILE if path.is_dir() else path
    try:
        values = json.loads(file.read_text())
        entries = tuple(Entry(**each) for each in values["figures"])
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}")
        return Evaluation(suite=values["suite"], entries=entries, where=str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegscaleError(
            file,
            "is not the file of an evaluation",
            found=error,
            fix="Give a folder or file that python -m regscale.evaluate wrote.",
        ) from error


def table(found: Evaluation) -> str:
    """Figures in rows; below, once, what they have in common."""
    lines = [f"{'':34}{'value':>12}{'spread':>10}{'noise floor':>14}{'of':>9}{'samples':>10}"]
    for each in found.entries:
        spread = "" if each.spread is None else f"{each.spread:.3g}"
        floor = "none" if each.noise_floor is None else f"{each.noise_floor:.4g}"
        size = "" if each.noise_samples is None else f"2x{each.noise_samples:,}"
        count = f"{each.provenance['samples']:,}"
        lines.append(f"{each.name:34}{each.value:12.4f}{spread:>10}{floor:>14}{size:>9}{count:>10}")
    lines += ["", *_without_floor(found)]
    for key in found.entries[0].provenance if found.entries else ():
        told = [str(each.provenance.get(key)) for each in found.entries]
        distinct = [text for text in dict.fromkeys(told) if text != "None"]
        if distinct and key != "samples":
            lines.append(f"{key:24}{', '.join(distinct)}")
    return "\n".join(lines)


def _without_floor(found: Evaluation) -> list[str]:
    """Why figures have no noise floor, in a line for each reason."""
    names: dict[str, list[str]] = defaultdict(list)
    for each in found.entries:
        if each.noise_floor is None:
            names[each.no_floor or "not measured"].append(each.name)
    return [f"{'no noise floor':24}{', '.join(names[why])}: {why}" for why in names]
