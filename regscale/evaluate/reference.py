"""Make reference statistics of real pictures: a folder, an ADM .npz, or indexed shards.

The file is an ADM reference: Inception's mu, sigma, mu_s, sigma_s and, with --keep N, N of the
pictures as arr_0, which precision and recall, KID and noise floors need.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from regscale import chance
from regscale.config import Invalid, load_layers, plugin
from regscale.config.layers import override_layers
from regscale.errors import RegscaleError
from regscale.evaluate._run import cluster_of
from regscale.evaluation._references import read_reference, write_reference
from regscale.evaluation.collecting import Place, features
from regscale.evaluation.metrics import Collected, gaussian_of
from regscale.evaluation.pictures import Pictures, of_path

log = logging.getLogger(__name__)

EXTRACTORS = "regscale.evaluation.extractors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", type=Path, help="a folder, an .npz, or a folder of indexed shards")
    add("settings", nargs="*", help="of the extractor: key=value, as weights=FILE")
    add("--out", type=Path, required=True, help="the .npz to write")
    add("--extractor", default="inception")
    add("--size", type=int, help="crop to squares of so many pixels (ADM's crop); shards need it")
    add("--keep", type=int, default=0, help="pictures to keep as arr_0, drawn by chance; ADM 10000")
    add("--device", default="auto")


def run(options: argparse.Namespace) -> None:
    """The statistics of all pictures in float64."""
    cluster = cluster_of(options)
    module = plugin(EXTRACTORS, options.extractor, where="--extractor")
    layers = override_layers(options.settings) or [("command line", {})]
    try:
        extractor = module.build(load_layers(module.Config, layers))
    except Invalid as error:
        raise RegscaleError(
            f"--extractor {options.extractor}: {error.key}",
            error.what,
            found=error.found,
            fix=error.fix,
        ) from error
    pictures = of_path(options.pictures, size=options.size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = features(extractor, pictures, Place(cluster=cluster, folder=options.out.parent))
    cluster.from_first(lambda: _write(found, pictures, options.out, options.keep))


def _write(found: Collected, pictures: Pictures, path: Path, keep: int) -> None:
    chosen = _chosen(len(pictures), keep)
    write_reference(
        path,
        pool=gaussian_of(found.features),
        spatial=None if found.spatial is None else gaussian_of(found.spatial),
        evaluator=found.evaluator,
        images=_some(pictures, chosen),
        image_shape=(len(chosen), *pictures.shape[1:]) if chosen else None,
    )
    log.info(
        "%s: %s pictures, evaluator %s, reference %s",
        path, f"{len(pictures):,}", found.evaluator, read_reference(path).identity,
    )  # fmt: skip


def _chosen(count: int, keep: int) -> list[int]:
    order = chance.permutation(count, seed=0, purpose="evaluate/reference")
    return sorted(order[:keep].tolist())


def _some(pictures: Pictures, chosen: list[int]) -> Iterator[Tensor]:
    wanted, place = set(chosen), 0
    for batch in pictures.batches() if chosen else ():
        held = [i for i in range(len(batch)) if place + i in wanted]
        place += len(batch)
        if held:
            yield batch[held]
