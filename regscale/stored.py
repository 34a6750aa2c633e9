"""Fields that were encoded beforehand: of the run's own encoders, or refused."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regscale.config import kind_of, plugin
from regscale.data import Source, refuse_stale
from regscale.encoding import identity_at
from regscale.recipe import RunConfig

log = logging.getLogger(__name__)


def check_stored(config: RunConfig, source: Source, targets: Iterable[str]) -> None:
    """Refuse stored fields of other encoders than the run's, or of pictures of another size.

    Each encoder is read for its hash and let go: a run on stored fields need not hold it. Fields
    that came without a hash are known by the published model's name, or not at all; a label
    without a size is that of an encoder alone.
    """
    held = _fields(config.data)
    if not held:
        return
    sections = [("moments", "regscale.autoencoders", config.autoencoder)]
    sections += [(n, "regscale.representations", config.targets[n]) for n in targets]
    identities = getattr(source, "identities", {})
    current: dict[str, str] = {}
    for name, package, section in sections:
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
            plain = plugin(package, kind_of(section)).build(section).identity
            sized = identity_at(plain, source.image_size)
            current |= {f: plain if identities[f] == plain else sized for f in hashed}
    refuse_stale(identities, current, where=f"{config.name}: data")


def _fields(data: Any) -> set[str]:
    """What a data section names as fields, also inside a mix."""
    return set(getattr(data, "fields", ())).union(
        *[_fields(each) for each in getattr(data, "sources", {}).values()]
    )
