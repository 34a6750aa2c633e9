"""The figures of a set of pictures: of each extractor what its features allow."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

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
    found: list[Figure] = []
    kept: dict[str, Seen] = {}
    distances: list[tuple[Figure, HeldOut]] = []
    for name, extractor in extractors.items():
        own = features(extractor, made, place)
        seen = view("references", name, against, own, extractor, place)
        beside = view("held_out", name, held_out, own, extractor, place) if held_out else None
        kept[name] = Seen(own, seen.real)
        measured, apart = place.cluster.from_first(partial(_of_one, own, seen, beside, place))
        found += measured
        if apart is not None:
            distances.append((measured[0], apart))
    return found + _relative(distances), kept


def _of_one(
    made: Collected, seen: View, beside: View | None, place: Place
) -> tuple[list[Figure], HeldOut | None]:
    """Where there is held-out data, a Fréchet distance is the first figure."""
    is_clip = seen.kind == "clip"
    measured = _frechet(made, seen, place) if beside is not None or not is_clip else []
    if is_clip:
        measured += _clip(made, seen, place)
    return measured, None if beside is None else _held_out(seen, beside)


def _clip(made: Collected, seen: View, place: Place) -> list[Figure]:
    if seen.real is None:
        return []
    device = place.cluster.device
    return [cmmd_figure(made, seen.real, reference=seen.identity, device=device)]


def _frechet(made: Collected, seen: View, place: Place) -> list[Figure]:
    """The distance of pooled features; with logits, all that Inception's features give."""
    plain = "FID" if seen.kind == "inception" else f"FD-{seen.kind}"
    pool, identity, real = seen.pool, seen.identity, seen.real
    if made.logits is None:
        return [frechet_figure(plain, made, reference=identity, against=pool, real=real)]
    device = "cpu" if place.cluster.device.type == "mps" else place.cluster.device
    found = inception_figures(
        made, reference=identity, pool=pool, spatial=seen.spatial, real=real, device=device
    )
    return [replace(each, name=plain if each.name == "FID" else each.name) for each in found]


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


def _relative(distances: list[tuple[Figure, HeldOut]]) -> list[Figure]:
    """FDr of each extractor, then of all."""
    if not distances:
        return []
    each = [
        relative_figure(f"FDr-{apart.evaluator.partition('-')[0]}", [figure], [apart])
        for figure, apart in distances
    ]
    made, held_out = zip(*distances, strict=True)
    return [*each, relative_figure(f"FDr^{len(made)}", made, held_out)]
