"""The start of a new run from the weights of another, by name, before an engine cuts the model."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regscale.checkpoint import candidates
from regscale.cluster import Cluster
from regscale.initialise.plan import plan
from regscale.initialise.source import open_weights
from regscale.layers.initial import beginning_with
from regscale.models import Backbone
from regscale.recipe import RunConfig

log = logging.getLogger(__name__)

__all__ = ["starting_from"]


@contextmanager
def starting_from(
    config: RunConfig, model: Backbone, folder: Path, cluster: Cluster
) -> Iterator[dict[str, Any] | None]:
    """Within the block a model on the meta device begins with what `init_from` names; what that
    was, for checkpoints. None without it, and for a run in `folder` that goes on. Collective."""
    given, checkpoints = config.init_from, folder / "checkpoints"
    if given.path is None or cluster.from_first(lambda: bool(candidates(checkpoints))):
        yield None
        return
    weights = open_weights(given, cluster)
    heads, above = config.model.shape[2], config.model.clean_above
    made = plan(model, weights, num_heads=heads, clean_above=above)
    if cluster.first:
        log.info("init_from %s\n%s", weights.where, made.table())
    with beginning_with(model, made.values):
        yield weights.origin
