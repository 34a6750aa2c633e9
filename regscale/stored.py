"""Fields that were encoded beforehand: of the run's own encoders, or refused."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regscale.config import kind_of, plugin
from regscale.data import Bucketed, Source, refuse_stale
from regscale.encoding import identity_at
from regscale.recipe import RunConfig

log = logging.getLogger(__name__)


def check_stored(config: RunConfig, source: Source, targets: Iterable[str]) -> None:
    """Refuse stored fields of other encoders than the run's, or of pictures of another size.

    Each encoder is read for its hash and let go: a run on stored fields need not hold it. Fields
    that came without a hash are known by the published model's name, or not at all; a label
    without a size is that of an encoder alone.
    """
    sections = [("moments", "regscale.autoencoders", config.autoencoder)]
    sections += [(n, "regscale.representations", config.targets[n]) for n in targets]
    encoders = [Encoder(*each) for each in sections]
    if not isinstance(source, Bucketed):
        _check(config.data, source, encoders, f"{config.name}: data")
        return
    for name, bucket in source.buckets.items():
        where = f"{config.name}: data.sources.{name}"
        _check(config.data.sources[name], bucket, encoders, where)


@dataclass(frozen=True)
class Encoder:
    """A tower by the field that it makes."""

    name: str
    package: str
    section: Any

    @cached_property
    def identity(self) -> str:
        """Of its weights, which are read once."""
        return str(plugin(self.package, kind_of(self.section)).build(self.section).identity)


def _check(data: Any, source: Source, encoders: Iterable[Encoder], where: str) -> None:
    held = _fields(data)
    if not held:
        return
    identities = getattr(source, "identities", {})
    current: dict[str, str] = {}
    for encoder in encoders:
        name, section = encoder.name, encoder.section
        claim = f"published {Path(getattr(section, 'model', None) or '').name}"
        hashed = []
        for field in [each for each in (name, f"{name}.patches") if each in held]:
            if identities.get(field, claim) == claim:
                label = f"only '{claim}'" if field in identities else "nor a name"
                text = "data: '%s' has no hash of its encoder, %s; taken on trust"
                log.warning(text, field, label)
            else:
                hashed.append(field)
        if hashed:
            plain = encoder.identity
            sized = identity_at(plain, source.image_size)
            current |= {f: plain if identities[f] == plain else sized for f in hashed}
    refuse_stale(identities, current, where=where)


def _fields(data: Any) -> set[str]:
    """What a data section names as fields, also inside a mix."""
    return set(getattr(data, "fields", ())).union(
        *[_fields(each) for each in getattr(data, "sources", {}).values()]
    )
