"""WebDataset shards with an index: any sample by its number, verified, from disks and stores.

Make the index once with `python -m regscale.prepare index FOLDER`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from regscale.config import Invalid
from regscale.data import _captions, _fields
from regscale.data._cache import Cache, Progress
from regscale.data._fields import Decoder, Sample
from regscale.data._images import Crop, Unusable
from regscale.data._merged import fingerprint
from regscale.data._mounts import on_network
from regscale.data._order import FLAT_LIMIT, sample_indices
from regscale.data._reader import MAX_OPEN, Reader
from regscale.data._samples import Damaged, Wanted, judge, plan, unpack
from regscale.data._select import Place, Selection, is_remote, select
from regscale.data._size import Size, size_of
from regscale.data._window import Ahead, Windows, refuse_small
from regscale.errors import RegscaleError
from regscale.types import Batch

log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 64
FREE_SKIPS = 3  # damaged samples of a process that are passed over before their share is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which shards, which of their fields, and what to do with damage."""

    urls: tuple[str, ...]  # folders, globs, shards; x-{000..127}.tar; s3://... through fsspec
    fields: tuple[str, ...]  # images, labels, captions, moments, and names of targets
    image_size: int | str = 256  # pixels of a side, or HEIGHTxWIDTH: 576x448
    crop: Crop = "centre"  # ADM's; none: pictures already have the size
    flip: bool = False  # half of the samples are mirrored; stored fields need both rows
    captions_name_sides: bool = True  # false: none says left or right, so that flip is allowed
    seed: int = 0  # of crops, flips and the choice among captions
    caption_weights: dict[str, float] = field(default_factory=dict)  # by source; empty: all equal
    mode: Literal["auto", "positional", "window"] = "auto"  # auto: window on network file systems
    window: int = 16  # shards that are shuffled together in window mode
    policy: Literal["fail", "skip"] = "fail"  # skip: damaged samples are replaced and reported
    skip_share: float = 0.001  # more damage than this share ends the run
    verify: bool = True  # compare each field that is read with its checksum
    cache: str = ""  # the node's folder for copies; empty: below the temporary folder
    cache_gib: float = 200.0  # two windows of shards at least
    timeout_seconds: float = 120.0  # a read without progress for so long is an error

    def __post_init__(self) -> None:
        for key in ("urls", "fields"):
            value = getattr(self, key)
            if not value or len(set(value)) < len(value):
                raise Invalid(key, "is a list of different names", found=value, fix="Name some.")
        if size_of(self.image_size) is None:
            raise Invalid(
                "image_size",
                "is a positive number of pixels, or HEIGHTxWIDTH",
                found=self.image_size,
                fix="Try 256, or 576x448.",
            )
        for key in ("window", "cache_gib", "timeout_seconds"):
            if getattr(self, key) <= 0:
                raise Invalid(key, "is positive", found=getattr(self, key), fix="Give more.")
        if not 0 <= self.skip_share < 1:
            raise Invalid(
                "skip_share", "is a share from 0 to 1", found=self.skip_share, fix="Try 0.001."
            )
        _captions.check(self.caption_weights)
        kept = [name for name in self.fields if _fields.stored(name)]
        if self.crop == "random" and kept:
            raise Invalid(
                "crop",
                "cannot be random with fields that were computed from the whole picture",
                found=", ".join(kept),
                fix="Take crop: centre, or leave these fields out and compute them live.",
            )
        if self.crop == "random" and len(set(self.size)) > 1:
            raise Invalid(
                "crop", "can be random of squares alone", found=self.image_size, fix="Take centre."
            )
        if self.flip and "captions" in self.fields and self.captions_name_sides:
            raise Invalid(
                "flip",
                "would turn left to right, which captions may name",
                found=True,
                fix="Drop it, or give captions_name_sides: false where no caption says a side.",
            )
        if self.mode == "positional" and any(is_remote(url) for url in self.urls):
            raise Invalid("mode", "is window for stores", found=self.urls[0], fix="Take auto.")

    @property
    def size(self) -> Size:
        """Height and width of the pictures."""
        size = size_of(self.image_size)
        assert size is not None, "checked when the config was made"
        return size


class Shards:
    """The samples of all shards, in the order of `urls` and of the shards' names."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.image_size = config.size
        self.cache = Cache(config.cache, int(config.cache_gib * 2**30))
        self.members = frozenset(m for name in config.fields for m in _fields.members(name))
        self.decoder = Decoder(
            fields=config.fields,
            size=config.size,
            crop=config.crop,
            flip=config.flip,
            seed=config.seed,
            caption_weights=config.caption_weights,
        )
        self.num_read = self.num_skipped = 0  # by this process

    def __getstate__(self) -> dict[str, Any]:
        """Without what a process opens for itself."""
        opened = ("selection", "reader", "ahead", "windows")
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @cached_property
    def selection(self) -> Selection:
        """The shards; opened at first use, when damage that the index knows is judged."""
        selection = select(self.config.urls, self.cache)
        if self.windowed:
            sizes = [place.shard.size for place in selection.places]
            refuse_small(self.cache.capacity, sizes, self.config.window)
        allowed = self.config.skip_share if self.config.policy == "skip" else 0.0
        judge(selection, self.config.fields, self._reader(selection), allowed=allowed)
        return selection

    @cached_property
    def reader(self) -> Reader:
        return self._reader(self.selection)

    def _reader(self, selection: Selection) -> Reader:
        return Reader(
            selection.places,
            self._local,
            timeout_seconds=self.config.timeout_seconds,
            max_open=self.config.window if self.windowed else MAX_OPEN,
        )

    @cached_property
    def windowed(self) -> bool:
        """Whether whole shards are copied to the node before they are read."""
        if self.config.mode != "auto":
            return self.config.mode == "window"
        return any(is_remote(url) or on_network(url) for url in self.config.urls)

    @cached_property
    def windows(self) -> Windows | None:
        """The order by two levels; None for one permutation of all samples."""
        counts = np.diff(self.selection.starts)
        if self.windowed:
            return Windows(counts.tolist(), self.config.window)
        if self.num_samples <= FLAT_LIMIT:
            return None
        return Windows(counts.tolist(), max(1, round(FLAT_LIMIT / 20 / float(counts.mean()))))

    @cached_property
    def ahead(self) -> Ahead:
        return Ahead(lambda place: self._local(self.selection.places[place], lambda: None))

    @property
    def num_samples(self) -> int:
        return self.selection.num_samples

    @cached_property
    def fingerprint(self) -> str:
        """Of the content of all shards and of the order that they are read in."""
        order = "flat" if self.windows is None else f"window-{self.windows.width}"
        return f"{fingerprint(p.shard for p in self.selection.places)}-{order}"

    @cached_property
    def identities(self) -> Mapping[str, str]:
        """Of the encoders that made the stored fields, by name: moments, and targets."""
        found: dict[str, str] = {}
        for name in filter(_fields.stored, self.config.fields):
            (member,) = _fields.members(name)
            made = {p.index.identities.get(member, "") for p in self.selection.places}
            if len(made) > 1:
                raise RegscaleError(
                    f"data.urls: '{name}'",
                    "is of different encoders in different folders",
                    found=", ".join(sorted(made)),
                    fix="Encode all of them with one encoder.",
                )
            found[name] = made.pop()
        return {name: identity for name, identity in found.items() if identity}

    def order(self, counters: Sequence[int], seed: int) -> list[int]:
        """The samples at these places of the run."""
        if self.windows is None:
            return sample_indices(counters, size=self.num_samples, seed=seed)
        if self.windowed and counters:
            self.ahead.ask(self.windows.near(counters[0], seed))
        return self.windows.indices(counters, seed)

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The samples at `indices`; a damaged one fails, or is replaced by its neighbour."""
        wanted = [plan(self.selection, index, self.members) for index in indices]
        data = iter(self.reader.borrow([span for each in wanted for span in each.spans]))
        samples = []
        for each, position in zip(wanted, positions, strict=True):
            parts = [next(data) for _ in each.spans]
            samples.append(self._sample(each, parts, position))
        return _fields.collate(samples, positions, self.config.fields)

    def _local(self, place: Place, progress: Progress) -> str:
        if not self.windowed:
            return place.url
        return str(self.cache.copy(place.url, place.shard, progress))

    def _sample(self, wanted: Wanted, parts: list[memoryview], position: int) -> Sample:
        """Decoded and verified; by `policy`, another in the place of a damaged one."""
        index = wanted.sample
        for _ in range(MAX_REPLACEMENTS):
            self.num_read += 1
            try:
                return self._decode(wanted, parts, position)
            except Damaged as error:
                if self.config.policy == "fail":
                    raise error.as_fault("data.policy=fail") from error
                self._report(error, position)
            index = (index + 1) % self.num_samples
            wanted = plan(self.selection, index, self.members)
            parts = self.reader.fetch(wanted.spans)
        raise RegscaleError(
            self.selection.places[wanted.place].url,
            f"has {MAX_REPLACEMENTS} damaged samples in a row",
            found=f"those before sample {index}",
            fix="Run python -m regscale.prepare verify, and restore the shard.",
        )

    def _decode(self, wanted: Wanted, parts: list[memoryview], position: int) -> Sample:
        place = self.selection.places[wanted.place]
        key, payloads = unpack(place, wanted, parts, verify=self.config.verify)
        try:
            return self.decoder.decode(key, payloads, position)
        except Unusable as error:
            field, why = error.args
            raise Damaged(place, wanted.cell(field), key, f"field '{field}' is {why}") from error

    def _report(self, error: Damaged, position: int) -> None:
        self.num_skipped += 1
        count = f"{self.num_skipped:,} of {self.num_read:,} samples read by this process"
        log.warning("%s; passed over at place %s of the run (%s)", error, f"{position:,}", count)
        if self.num_skipped > max(FREE_SKIPS, self.config.skip_share * self.num_read):
            raise error.as_fault(f"damage in {count}, more than data.skip_share allows")


def build(config: Config) -> Shards:
    """The shards as a source; nothing is read yet."""
    return Shards(config)
