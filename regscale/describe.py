"""What a config would train, without allocating it: parameters, FLOPs, shapes."""

from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from regscale.assemble import Pieces, pieces
from regscale.data import spelled
from regscale.recipe import RunConfig


def dry_run(config: RunConfig) -> Iterator[str]:
    """The lines of `--dry-run`: what would be trained, without allocating it."""
    parts = pieces(config)
    tensors = [*parts.model.parameters(), *parts.model.buffers()]
    count = sum(t.numel() for t in tensors)
    projectors = sum(p.numel() for p in parts.model.projectors.parameters())
    forward = flops(parts)
    yield f"parameters            {count:,} with and {count - projectors:,} without projectors"
    yield f"forward               {forward / 1e9:,.4g} GFLOP an image (2 x multiply-adds)"
    yield f"training              {3 * forward / 1e9:,.4g} GFLOP an image (3 x forward)"
    yield f"latents               {parts.latent_shape}, tokens {list(parts.token_shapes)}"
    if parts.bucket_shapes:
        yield f"buckets               {', '.join(map(spelled, parts.bucket_shapes))} pixels"


def flops(parts: Pieces) -> float:
    """Of one forward of one image, counted on the meta device."""
    meta = torch.device("meta")
    condition = parts.conditioner.blank(1)
    latents = torch.zeros(1, *parts.latent_shape, device=meta)
    tokens = tuple(torch.zeros(1, *shape, device=meta) for shape in parts.token_shapes)
    t = torch.zeros(1, device=meta)
    with FlopCounterMode(display=False) as counter:
        parts.model(latents, tokens, t, (t,) * len(tokens), condition)
    return float(counter.get_total_flops())
