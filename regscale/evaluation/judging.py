"""The figures of a set of pictures: of each extractor what its features allow."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from regscale.errors import RegscaleError
from regscale.evaluation.collecting import Place, features
from regscale.evaluation.extractors import Extractor
from regscale.evaluation.metrics import (
    Collected,
    Figure,
    HeldOut,
    cmmd_figure,
    frechet_distance_of,
    frechet_figure,
    inception_figures,
    relative_figure,
)
from regscale.evaluation.pictures import Pictures
from regscale.evaluation.real import Against, View, view


class Seen(NamedTuple):
    """The features of one extractor."""

    made: Collected
    real: Collected | None


class Part(NamedTuple):
    """What one extractor gives; with held-out data, a Fréchet distance is the first figure."""

    kind: str
    figures: list[Figure]
    held_out: HeldOut | None


def figures(
    extractors: Mapping[str, Extractor],
    against: Mapping[str, Against],
    made: Pictures,
    place: Place,
    *,
    held_out: Mapping[str, Against] | None = None,
) -> tuple[list[Figure], dict[str, Seen]]:
    """All figures, and the features by the extractor's name. Collective.

    `against` and `held_out` are by the extractor's name; real pictures of the first give precision,
    recall, KID and floors, the second FDr of each extractor and of all.
    """
    kept: dict[str, Seen] = {}
    parts: dict[str, Part] = {}
    for name, extractor in extractors.items():
        own = features(extractor, made, place)
        seen = view("references", name, against, own, extractor, place)
        beside = view("held_out", name, held_out, own, extractor, place) if held_out else None
        kept[name] = Seen(own, seen.real)
        parts[name] = place.cluster.from_first(partial(_of_one, own, seen, beside, place))
    parts = _told_apart(parts)
    return [f for part in parts.values() for f in part.figures] + _relative(parts.values()), kept


def _of_one(made: Collected, seen: View, beside: View | None, place: Place) -> Part:
    is_clip = seen.kind == "clip"
    measured = _frechet(made, seen, place) if beside is not None or not is_clip else []
    if is_clip:
        measured += _clip(made, seen, place)
    return Part(seen.kind, measured, None if beside is None else _held_out(seen, beside))


def _told_apart(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Where a kind comes twice, as in two sizes, the user's name stands in its figures."""
    times = Counter(part.kind for part in parts.values())
    found = {}
    for name, part in parts.items():
        own = f" {name}" if times[part.kind] > 1 else ""
        named = [replace(each, name=f"{each.name}{own}") for each in part.figures]
        found[name] = part._replace(kind=f"{part.kind}{own}", figures=named)
    return found


def _clip(made: Collected, seen: View, place: Place) -> list[Figure]:
    if seen.real is None:
        return []
    device = _device(place)
    return [cmmd_figure(made, seen.real, reference=seen.identity, device=device)]


def _frechet(made: Collected, seen: View, place: Place) -> list[Figure]:
    """The distance of pooled features; with logits, all that Inception's features give."""
    plain = "FID" if seen.kind == "inception" else f"FD-{seen.kind}"
    pool, identity, real = seen.pool, seen.identity, seen.real
    if made.logits is None:
        return [frechet_figure(plain, made, reference=identity, against=pool, real=real)]
    device = _device(place)
    found = inception_figures(
        made, reference=identity, pool=pool, spatial=seen.spatial, real=real, device=device
    )
    return [replace(each, name=plain if each.name == "FID" else each.name) for each in found]


def _device(place: Place) -> torch.device:
    """Where float64 is to be had: MPS has none."""
    device = place.cluster.device
    return torch.device("cpu") if device.type == "mps" else device


def _held_out(seen: View, beside: View) -> HeldOut:
    if seen.identity == beside.identity:
        raise RegscaleError(
            beside.setting,
            "is other data than the reference",
            found=f"{beside.identity} in both",
            fix="Give real pictures that the reference does not hold, as of a validation set.",
        )
    return HeldOut(
        identity=beside.identity,
        evaluator=beside.evaluator,
        distance=frechet_distance_of(beside.pool, seen.pool),
    )


def _relative(parts: Iterable[Part]) -> list[Figure]:
    """FDr of each extractor, then of all."""
    each = [(p.kind, p.figures[0], p.held_out) for p in parts if p.held_out is not None]
    if not each:
        return []
    _, made, held_out = zip(*each, strict=True)
    own = [relative_figure(f"FDr-{kind}", [figure], [apart]) for kind, figure, apart in each]
    return [*own, relative_figure(f"FDr^{len(made)}", made, held_out)]
