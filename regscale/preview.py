"""Pictures that a run draws on its way, so that one sees it learn."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from regscale.cluster import Cluster
from regscale.recipe import RunConfig
from regscale.sampling import Sampler
from regscale.sampling.pictures import grid, save_png

EACH = 8  # pictures of a condition


def preview(
    config: RunConfig,
    sampler: Sampler,
    averaged: Callable[[], AbstractContextManager[None]],
    cluster: Cluster,
) -> Callable[[int], None]:
    """Draws a few conditions from fixed seeds. Every rank draws, since all hold a part of the
    weights; the first one writes."""
    conditioner, guidance = sampler.conditioner, config.sampling.guidance
    texts = conditioner.examples()

    def draw(step: int) -> None:
        with averaged():
            rows = [
                sampler(conditioner.parse([text] * EACH), range(EACH), guidance) for text in texts
            ]
        if cluster.first:
            path = Path(config.runs) / config.name / "samples" / f"step-{step:08d}.png"
            sheet = grid(torch.cat(rows), columns=EACH, row_names=texts)
            save_png(sheet, path, {"step": step, "guidance": guidance})

    return draw
