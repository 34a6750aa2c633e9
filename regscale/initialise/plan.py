"""What of given weights a model takes: by name and shape alone."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from torch import Tensor

from regscale.errors import RegscaleError
from regscale.initialise.source import Shape, Weights
from regscale.layers.embedder import Pooled
from regscale.models import Backbone

TRUNK = re.compile(r"(blocks\.\d+|t_embedder)\.")  # weights that mean nothing in another shape
LABELS = "y_embedder.embedding_table.weight"
SHOWN = 3  # names of an error


class Row(NamedTuple):
    what: str  # taken, resized, left or unused
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The values that parameters and buffers begin with instead of their own."""

    values: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def take(self, row: Row, value: Callable[[], Tensor]) -> None:
        self.values[row.name] = value
        self.rows.append(row)

    def table(self) -> str:
        """A line for each kind of parameter, those of all blocks in one."""
        counts = Counter(Row(what, _kind(name), note) for what, name, note in self.rows)
        return "\n".join(
            f"  {row.what:8}{count:4}  {row.name}{row.note and f': {row.note}'}"
            for row, count in counts.items()
        )


def plan(model: Backbone, weights: Weights, *, num_heads: int, clean_above: float | None) -> Plan:
    """Taken: same name and shape. Resized: the table of places. Left: all else of the model."""
    own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    _refuse_other_trunk(own, weights, num_heads)
    _refuse_other_answer(weights, clean_above)
    made = Plan()
    for name, shape in own.items():
        found = weights.shapes.get(name)
        if found == shape:
            made.take(Row("taken", name), partial(weights.read, name))
        else:
            made.rows.append(Row("left", name, "" if found is None else f"{found} there"))
    _take_places(made, model, weights)
    known = _take_null_label(made, model, weights) | {row.name for row in made.rows}
    made.rows.extend(Row("unused", name) for name in weights.shapes if name not in known)
    return made


def _take_places(made: Plan, model: Backbone, weights: Weights) -> None:
    for name, buffer in model.named_buffers():
        table = None
        if name in model.places and name in weights.shapes:
            table = model.places_from(name, weights.read(name))
        if table is None:
            made.rows.append(Row("left", name))
        else:
            shapes = weights.shapes[name], tuple(buffer.shape)
            note = "" if shapes[0] == shapes[1] else f"{shapes[0]} to {shapes[1]}"
            made.take(Row("resized" if note else "taken", name, note), partial(_itself, table))


def _take_null_label(made: Plan, model: Backbone, weights: Weights) -> set[str]:
    """A model without labels goes on as one with the label "no class": what that adds to the adaLN
    vector is added by the pooled text, as a bias that no text changes at the start. The names that
    are used so."""
    pooled = [name for name, module in model.named_modules() if isinstance(module, Pooled)]
    if not pooled or LABELS not in weights.shapes or LABELS in dict(model.named_parameters()):
        return set()
    name = f"{pooled[0]}.mlp.2.bias"
    before = made.values.get(name)
    made.rows.remove(Row("left" if before is None else "taken", name))

    def bias() -> Tensor:
        row = weights.read(LABELS)[-1]
        return row if before is None else before() + row

    made.take(Row("taken", name, f"with 'no class' of {LABELS}"), bias)
    return {LABELS}


def _refuse_other_trunk(own: dict[str, Shape], weights: Weights, num_heads: int) -> None:
    differing = list(_differing(own, weights.shapes))
    if differing:
        raise RegscaleError(
            f"init_from {weights.where}",
            "is of a model of another width or depth",
            found="; ".join(differing[:SHOWN]) + f" ({len(differing)} names differ)",
            fix="Give model the size of these weights, or other weights.",
        )
    if weights.num_heads not in (None, num_heads):
        raise RegscaleError(
            f"init_from {weights.where}",
            f"is of a model with {num_heads} attention heads, which read its weights so",
            found=weights.num_heads,
            fix=f"Set model.num_heads={weights.num_heads}.",
        )


def _refuse_other_answer(weights: Weights, clean_above: float | None) -> None:
    if weights.clean_above != clean_above:
        needed = "null" if weights.clean_above is None else weights.clean_above
        raise RegscaleError(
            f"init_from {weights.where}",
            "is of a model whose image head answers with something else",
            found=f"clean_above {needed}",
            fix=f"Set model.clean_above={needed}.",
        )


def _differing(own: Mapping[str, Shape], found: Mapping[str, Shape]) -> Iterator[str]:
    """Names of the trunk with another shape, or of blocks that only one of the two has."""
    mine, theirs = ({m[1] for n in names if (m := TRUNK.match(n))} for names in (own, found))
    for name in dict.fromkeys([*own, *found]):
        part, here, there = TRUNK.match(name), own.get(name), found.get(name)
        if part is not None and here != there:
            is_added = here is None or there is None  # as keys of a text
            if not is_added or part[1] not in mine & theirs:
                yield f"{name} {there or 'absent'}, here {here or 'absent'}"


def _itself(table: Tensor) -> Tensor:
    return table


def _kind(name: str) -> str:
    """Of all modules that are alike, as blocks; not the number of a layer in a sequence."""
    name = name.removesuffix(".weight").removesuffix(".bias")
    return re.sub(r"\.\d+\.", ".*.", name, count=1)
