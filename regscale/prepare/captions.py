"""Make shards of pictures with captions from img2dataset's output, through filters.

SOURCE holds jpg, txt and json of each sample, in tars or as files in folders. A sample comes out
with its picture as it was and with json: `captions`, a list of texts, and `caption_sources`, where
each of them is from.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from regscale.data import _fields
from regscale.data._images import Unusable
from regscale.data._images import opened as opened_picture
from regscale.prepare import _packing, _plan
from regscale.prepare._downloads import Fields, parts_of, samples_of, size_of
from regscale.prepare._packing import Job, Task, pack
from regscale.prepare._pictures import FIELDS
from regscale.prepare._summary import finish
from regscale.prepare._tally import Removed, Sample

TEXT = "txt"  # the caption that img2dataset was told to take


class Limit(NamedTuple):
    """A bound of a number in the json."""

    field: str
    side: Literal["at least", "at most"]
    value: float

    def reason(self, about: Mapping[str, Any]) -> str:
        """Why a sample is removed; empty for one that stays."""
        found = about.get(self.field)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or math.isnan(found):
            return f"no number '{self.field}'"
        kept = found >= self.value if self.side == "at least" else found <= self.value
        return "" if kept else f"'{self.field}' is not {self.side} {self.value:g}"


SCORES: tuple[tuple[str, str, Literal["at least", "at most"]], ...] = (
    ("aesthetic", "aesthetic", "at least"),
    ("watermark", "pwatermark", "at most"),
    ("clip", "similarity", "at least"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="the folder that img2dataset wrote")
    parser.add_argument("out", type=Path, help="the folder of the shards")
    parser.add_argument(
        "--captions", nargs="+", default=[TEXT], metavar="NAME",
        help=f"'{TEXT}', or fields of the json: a text, a list, or an object of texts by source",
    )  # fmt: skip
    parser.add_argument("--min-side", type=int, default=0, help="pixels")
    parser.add_argument("--max-aspect", type=float, default=math.inf, help="long by short side")
    for name, field, side in SCORES:
        bound = "min" if side == "at least" else "max"
        parser.add_argument(f"--{bound}-{name}", type=float, dest=name, metavar="SCORE")
        parser.add_argument(
            f"--{name}-field", default=field, help="of the json; '%(default)s' by default"
        )
    _packing.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Filter and pack; what each filter removed is told at the end."""
    _packing.check("captions", options)
    job = _job(options, parts_of(options.source))
    if pack(job, workers=options.workers):
        finish(job)


def _job(options: argparse.Namespace, parts: Sequence[Path]) -> Job:
    filters = Filters(
        min_side=options.min_side,
        max_aspect=options.max_aspect,
        limits=tuple(
            Limit(getattr(options, f"{name}_field"), side, getattr(options, name))
            for name, _, side in SCORES
            if getattr(options, name) is not None
        ),
    )
    sizes = [(str(part.relative_to(options.source)), size_of(part)) for part in parts]
    return Job(
        out=options.out,
        shards=groups(sizes, options.shard_mb),
        packer=Captioned(options.source, tuple(options.captions), filters),
        settings={
            "command": "captions",
            "captions": options.captions,
            **asdict(filters),
            "max_aspect": str(filters.max_aspect),
            "shard_mb": options.shard_mb,
            "tars": sizes,
        },
        policy=options.policy,
    )


def groups(sizes: Sequence[tuple[str, int]], shard_mb: float) -> dict[str, list[Task]]:
    """Whole parts in their order, one shard for about `shard_mb` of them."""
    found: dict[int, list[Task]] = {}
    before = 0
    for name, size in sizes:
        found.setdefault(int((before + size // 2) / (shard_mb * 1e6)), []).append([name])
        before += size
    return {f"{number:05d}.tar": tasks for number, tasks in enumerate(found.values())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a picture and its json must be."""

    min_side: int
    max_aspect: float
    limits: tuple[Limit, ...]

    def of_json(self, about: Mapping[str, Any]) -> str:
        """Why a sample is removed; empty for one that stays."""
        return next((why for limit in self.limits if (why := limit.reason(about))), "")

    def of_sides(self, width: int, height: int) -> str:
        """The same, by the sides of its picture."""
        if min(width, height) < self.min_side:
            return f"a side below {self.min_side} pixels"
        if max(width, height) > self.max_aspect * min(width, height):
            return f"an aspect ratio above {self.max_aspect:g}"
        return ""


@dataclass(frozen=True, slots=True)
class Captioned:
    """Samples of whole tars or folders that pass the filters."""

    root: Path
    sources: tuple[str, ...]
    filters: Filters

    def samples(self, tasks: Sequence[Task]) -> Iterator[Sample | Removed]:
        for (part,) in tasks:
            damage: list[tuple[str, str]] = []
            for key, fields in samples_of(self.root / part, damage):
                yield self._sample(key, fields, where=f"{part}/{key}")
            yield from (Removed(where, "damaged", why) for where, why in damage)

    def _sample(self, key: str, fields: Fields, *, where: str) -> Sample | Removed:
        picture = next((field for field in _fields.PICTURES if field in fields), None)
        if picture is None:
            return Removed(where, "damaged", f"has no picture; it has {', '.join(sorted(fields))}")
        field = TEXT
        try:
            text = fields[TEXT]().decode() if TEXT in fields else ""
            field = "json"
            about = _fields.json_object(memoryview(fields[field]())) if field in fields else {}
            if reason := self.filters.of_json(about):
                return Removed(where, reason)
            found = texts(text, about, self.sources)
            if not found:
                return Removed(where, f"no caption from {', '.join(self.sources)}")
            field = picture
            kind, sides = _sides(image := fields[picture]())
        except (Unusable, UnicodeDecodeError) as error:
            why = str(error) if isinstance(error, Unusable) else "no text in UTF-8"
            return Removed(where, "damaged", f"field '{field}' is {why}")
        if reason := self.filters.of_sides(*sides):
            return Removed(where, reason)
        names, captions = zip(*found, strict=True)
        told = {**about, "captions": captions, "caption_sources": names}
        made = json.dumps(told, ensure_ascii=False, sort_keys=True).encode()
        return _plan.keys([key])[0], {kind: image, "json": made}


def _sides(payload: bytes) -> tuple[str, tuple[int, int]]:
    """(field, (width, height)) of a picture that is decoded whole."""
    picture, kind = opened_picture(payload)
    return FIELDS[kind], picture.size


def texts(text: str, about: Mapping[str, Any], sources: Sequence[str]) -> list[tuple[str, str]]:
    """(source, caption) of a sample, in the order of `sources`; empty ones are left out."""
    found: list[tuple[str, Any]] = []
    for source in sources:
        value = (text or about.get("caption")) if source == TEXT else about.get(source)
        if isinstance(value, dict):
            found += [(f"{source}/{name}", value[name]) for name in sorted(value)]
        else:
            found += [(source, each) for each in (value if isinstance(value, list) else [value])]
    return [(name, each.strip()) for name, each in found if isinstance(each, str) and each.strip()]
