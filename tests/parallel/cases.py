"""What the tests of engines run in each process."""

from __future__ import annotations

from typing import Any

import torch

from regscale import assemble
from regscale.cluster import Cluster
from regscale.config import load
from regscale.recipe import RunConfig
from regscale.training.loop import open_loader, update


def config_of(file: str, overrides: list[str]) -> RunConfig:
    from pathlib import Path

    return load(RunConfig, Path(file), overrides)


def trained(cluster: Cluster, file: str, overrides: list[str], steps: int) -> dict[str, Any]:
    """Losses and norms of `steps` updates, and weights and averages after them."""
    job = assemble.job(config_of(file, overrides))
    start = dict(job.engine.full_state())
    loader, losses, norms = open_loader(job, 0), [], []
    for _ in range(steps):
        values, result = update(job, next(loader))
        losses.append(float(cluster.mean(values[0])))
        norms.append(float(result.grad_norm))
    loader.close()
    state = dict(job.engine.full_state())
    with job.engine.weights(job.ema.weights(0.9)):
        average = dict(job.engine.full_state())
    same = dict(job.engine.full_state())
    assert all(torch.equal(same[name], state[name]) for name in state)
    return {"losses": losses, "norms": norms, "start": start, "state": state, "ema": average}
