"""Features of a set of pictures, by all processes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from regscale.cluster import Cluster
from regscale.evaluation.extractors import Extractor, collect
from regscale.evaluation.metrics import Collected
from regscale.evaluation.pictures import Pictures

FIELDS = ("features", "spatial", "logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a suite works: its processes, and a folder that all of them see."""

    cluster: Cluster
    folder: Path


def features(extractor: Extractor, pictures: Pictures, place: Place) -> Collected:
    """Of all pictures in their order, on every process. Collective.

    Parts go through files: a process may hold hundreds of megabytes.
    """
    cluster, own = place.cluster, pictures.share(place.cluster)
    extractor = extractor.to(cluster.device)
    if cluster.world_size == 1:
        return collect(extractor, pictures.batches())
    identity = cluster.together(lambda: extractor.identity)

    def path(rank: int) -> Path:
        return place.folder / f".features-{identity[-12:]}-{rank:05d}.safetensors"

    def work() -> None:
        if len(own):
            found = collect(extractor, pictures.batches(own))
            held = {name: getattr(found, name) for name in FIELDS}
            save_file(
                {n: v.contiguous() for n, v in held.items() if v is not None}, path(cluster.rank)
            )

    cluster.together(work)
    parts = [load_file(path(r)) for r in range(cluster.world_size) if path(r).exists()]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    cluster.barrier()
    path(cluster.rank).unlink(missing_ok=True)
    return Collected(evaluator=identity, **whole)
