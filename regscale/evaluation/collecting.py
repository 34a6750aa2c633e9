"""Features of a set of pictures, by all processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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
    with _own_folder(place) as folder:

        def work() -> None:
            if len(own):
                found = collect(extractor, pictures.batches(own))
                held = {name: getattr(found, name) for name in FIELDS}
                save_file(
                    {n: v.contiguous() for n, v in held.items() if v is not None},
                    folder / f"{cluster.rank}.safetensors",
                )

        cluster.together(work)
        shares = cluster.gather(len(own))
        files = [folder / f"{rank}.safetensors" for rank, share in enumerate(shares) if share]
        return Collected(evaluator=identity, **_joined(files))


def _joined(files: list[Path]) -> dict[str, Tensor]:
    """Copies: no file stays mapped."""
    parts = [load_file(file) for file in files]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def _own_folder(place: Place) -> Iterator[Path]:
    """Of this collection alone: other jobs, or one that was killed, may have worked beside it."""
    cluster = place.cluster
    made = cluster.from_first(lambda: Path(mkdtemp(prefix=".features-", dir=place.folder)))
    try:
        yield made
        cluster.barrier()
    finally:
        if cluster.first:
            rmtree(made, ignore_errors=True)
