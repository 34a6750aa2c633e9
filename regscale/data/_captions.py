"""Which of a sample's captions a place of the run takes: by the weights of their sources."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

from regscale.config import Invalid
from regscale.data._images import Unusable

log = logging.getLogger(__name__)

Weights = Mapping[str, float]  # by source, as `prepare captions` names them
ALONE = "txt"  # the source of a caption that is a sample's only one


def check(weights: Weights) -> None:
    """Refuse weights that choose nothing."""
    for source, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise Invalid(
                f"caption_weights.{source}",
                "is a number, 0 or more",
                found=weight,
                fix="Give 0 to leave a source out.",
            )
    if weights and not any(weights.values()):
        raise Invalid(
            "caption_weights",
            "has a weight above 0",
            found=dict(weights),
            fix="Give one of the sources more, or leave caption_weights out.",
        )


def caption(
    about: Mapping[str, Any],
    text: memoryview | None,
    weights: Weights,
    *,
    draw: Callable[[], float],
) -> str:
    """The caption for a uniform number in [0, 1), from what a sample's json and txt say.

    Without weights all captions are equally likely. With weights, those of the sources that a
    sample has count relative to each other, and a source's captions share its weight equally. A
    source that is not named has weight 0, which each process tells once. Raises `Unusable` for a
    sample whose captions all have weight 0: it is for `data.policy`, like damage.
    """
    captions, sources = _held(about, text)
    if not weights:
        return _at([1.0] * len(captions), captions, draw)
    if sources is None:
        raise Unusable("captions without 'caption_sources', which data.caption_weights needs")
    if not isinstance(sources, list):
        raise Unusable("json whose 'caption_sources' are no list")
    if len(sources) != len(captions):
        raise Unusable(f"json with {len(sources)} 'caption_sources' for {len(captions)} 'captions'")
    names = [str(source) for source in sources]
    for name in sorted(set(names) - weights.keys()):
        _tell(name)
    shared = Counter(names)
    each = [weights.get(name, 0.0) / shared[name] for name in names]
    if not any(each):
        has = ", ".join(shared)
        raise Unusable(f"without a caption that data.caption_weights takes, it is from {has} alone")
    return _at(each, captions, draw)


def _held(about: Mapping[str, Any], text: memoryview | None) -> tuple[Sequence[str], Any]:
    """(captions, their sources as stated): `captions`, else the text, else `caption`."""
    several = about.get("captions")
    if isinstance(several, list) and several:
        return [str(each) for each in several], about.get("caption_sources")
    if text is not None:
        try:
            return [bytes(text).decode().strip()], [ALONE]
        except UnicodeDecodeError as error:
            raise Unusable("no text in UTF-8") from error
    if not isinstance(about.get("caption"), str):
        raise Unusable("no 'caption' and no 'captions'")
    return [str(about["caption"])], [ALONE]


def _at(weights: Sequence[float], captions: Sequence[str], draw: Callable[[], float]) -> str:
    """The caption in whose part of the summed weights the number falls."""
    if len(captions) == 1:
        return captions[0]
    bounds = list(accumulate(weights))
    return captions[bisect_right(bounds, draw() * bounds[-1])]


@cache
def _tell(source: str) -> None:
    log.warning("data.caption_weights does not name '%s': its captions are never taken", source)
