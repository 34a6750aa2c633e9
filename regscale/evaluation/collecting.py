"""Features of a set of pictures by all processes, and the figures that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.evaluation._references import Reference, read_reference
from regscale.evaluation.extractors import Extractor, collect
from regscale.evaluation.metrics import (
    Collected,
    Figure,
    cmmd_figure,
    frechet_figure,
    gaussian_of,
    inception_figures,
)
from regscale.evaluation.pictures import Pictures, of_npz

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What pictures are compared with: statistics, real pictures, or both."""

    identity: str
    statistics: Reference | None = None
    real: Pictures | None = None


def reference(path: str) -> Against:
    """A file of statistics, whose pictures, where it has some, are real ones."""
    held = read_reference(Path(path))
    real = None if held.image_shape is None else of_npz(held.path)
    return Against(identity=held.identity, statistics=held, real=real)


def figures(
    extractors: Mapping[str, Extractor],
    against: Mapping[str, Against],
    made: Pictures,
    place: Place,
) -> tuple[list[Figure], dict[str, Collected]]:
    """Of each extractor what its features allow, and the features. Collective.

    `against` is by the extractor's name; `real` pictures give precision, recall, KID and floors.
    """
    found: list[Figure] = []
    kept: dict[str, Collected] = {}
    for name, extractor in extractors.items():
        given = against.get(name) or against.get("all")
        if given is None:
            raise RegscaleError(
                f"references.{name}",
                "is needed to compare features with",
                found=", ".join(against) or "no reference",
                fix=f"Give references.{name}=FILE.npz (python -m regscale.evaluate reference).",
            )
        kept[name] = features(extractor, made, place)
        real = None if given.real is None else features(extractor, given.real, place)
        found += place.cluster.from_first(partial(_of_one, name, kept[name], given, real, place))
    return found, kept


def _of_one(
    name: str, made: Collected, against: Against, real: Collected | None, place: Place
) -> list[Figure]:
    identity, statistics = against.identity, against.statistics
    made_by = None if statistics is None else statistics.evaluator
    if made_by not in (None, made.evaluator):
        statistics = None  # its pictures serve any extractor
    kind = made.evaluator.partition("-")[0]
    if kind == "clip":
        if real is None:
            return []
        return [cmmd_figure(made, real, reference=identity, device=place.cluster.device)]
    pool = None if statistics is None else statistics.pool
    if kind != "inception" and pool is not None and len(pool.mean) != made.features.shape[1]:
        pool = None  # an ADM file's statistics are Inception's; its pictures serve any extractor
    if pool is None and real is None:
        raise RegscaleError(
            f"references.{name}: {identity}",
            "has neither statistics of this extractor nor pictures",
            found=f"{made.evaluator}, {made.features.shape[1]} wide"
            + (f"; statistics of {made_by}" if made_by else ""),
            fix="Make them: python -m regscale.evaluate reference SHARDS --extractor KIND.",
        )
    if pool is None:
        assert real is not None, "checked above"
        pool = gaussian_of(real.features)
    if made.logits is None:
        return [frechet_figure(f"FD-{kind}", made, reference=identity, against=pool, real=real)]
    spatial = None if statistics is None else statistics.spatial
    if spatial is None and real is not None and real.spatial is not None:
        spatial = gaussian_of(real.spatial)
    device = "cpu" if place.cluster.device.type == "mps" else place.cluster.device
    found = inception_figures(
        made, reference=identity, pool=pool, spatial=spatial, real=real, device=device
    )
    plain = "FID" if kind == "inception" else f"FD-{kind}"
    return [replace(each, name=plain if each.name == "FID" else each.name) for each in found]
