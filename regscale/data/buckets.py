"""Pictures of several sizes, a source each: every batch is of one of them, in their proportions."""

from dataclasses import dataclass
from typing import Any

from regscale.config import Invalid, kind_of, plugin, slots
from regscale.data._buckets import Buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`sources: {512x512: {kind: shards, image_size: 512x512, ...}, 576x448: {...}}`."""

    batch_size: int  # ${training.batch_size}
    sources: dict[str, Any] = slots("regscale.data")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise Invalid(
                "batch_size",
                "is that of the training",
                found=self.batch_size,
                fix="Write ${training.batch_size}.",
            )
        if not self.sources:
            raise Invalid(
                "sources", "are one for each size", found="none", fix="Write {NAME: {kind: ...}}."
            )


def build(config: Config) -> Buckets:
    """The buckets in the order of their names; nothing is read yet."""
    names = sorted(config.sources)
    sources = {n: plugin("regscale.data", kind_of(config.sources[n])) for n in names}
    buckets = {n: sources[n].build(config.sources[n]) for n in names}
    return Buckets(buckets, config.batch_size)
