"""Figures of one run over its steps: this evaluation, and those that are like it."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from regscale.errors import RegscaleError
from regscale.evaluation.compare import floor_is_a_value
from regscale.evaluation.plot import Points, panels
from regscale.evaluation.provenance import differences, step_of
from regscale.evaluation.report import FILE, Entry, Evaluation, read

log = logging.getLogger(__name__)

COLUMNS = 2


def of_run(folder: Path) -> Iterator[Evaluation]:
    """All evaluations below a run's evaluations/, also those during training."""
    places = folder / "evaluations"
    for path in sorted([*places.glob(f"*/{FILE}"), *places.glob(f"*/*/{FILE}")]):
        try:
            yield read(path)
        except RegscaleError as error:
            log.warning("left out of the plot over steps: %s", error)


def over_steps(found: Evaluation, others: Iterable[Evaluation]) -> Image.Image | None:
    """The `charts` as a picture; None where there are none."""
    made = charts(found, others)
    return panels(made, x_name="step", columns=COLUMNS) if made else None


def charts(found: Evaluation, others: Iterable[Evaluation]) -> dict[str, dict[str, Points]]:
    """Lines of each figure whose like was measured at other steps.

    Alike is what may be ranked: all of the provenance but the checkpoint. Where the noise floor is
    a value of the figure, it is a line too.
    """
    held = [entry for each in others for entry in each.entries]
    made: dict[str, dict[str, Points]] = {}
    for entry in found.entries:
        values = _values(entry, held)
        if len(values) < 2:
            continue
        lines: dict[str, Points] = {"value": sorted(values.items())}
        if entry.noise_floor is not None and floor_is_a_value(entry.name):
            lines["noise floor"] = [(end, entry.noise_floor) for end in (min(values), max(values))]
        made[f"{found.suite}: {entry.name}"] = lines
    return made


def _values(entry: Entry, others: Iterable[Entry]) -> dict[float, float]:
    """By step; `entry` itself counts where there are two of a step."""
    found: dict[float, float] = {}
    for each in (*others, entry):
        step = step_of(each.provenance)
        alike = each.name == entry.name and not differences(each.provenance, entry.provenance)
        if step is not None and alike:
            found[step] = each.value
    return found
