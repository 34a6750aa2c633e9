"""Draw the images of a suite from a run and judge them; or judge pictures made elsewhere.

RUN is a run folder, a folder of pictures, an ADM .npz or a folder of indexed shards. Suites'
settings follow as key=value: num_samples=50000 labels=balanced references.all=FILE.npz
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from regscale import __version__
from regscale.assemble import Loaded
from regscale.checkpoint import is_one
from regscale.cluster import Cluster
from regscale.config import kinds
from regscale.errors import RegscaleError
from regscale.evaluate._run import (
    SUITES,
    add_sampling,
    cluster_of,
    load,
    making_of,
    suite_of,
)
from regscale.evaluation import report
from regscale.evaluation.bars import bars
from regscale.evaluation.collecting import Place
from regscale.evaluation.over_steps import of_run, over_steps
from regscale.evaluation.pictures import Pictures, of_files, of_path
from regscale.evaluation.provenance import Making
from regscale.evaluation.sheet import captioned
from regscale.evaluation.suites import Suite
from regscale.sampling import GuidanceConfig, many
from regscale.sampling.options import guidance_of
from regscale.sampling.pictures import grid, open_folder, save_png

log = logging.getLogger(__name__)

SHEET = 64  # pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run folder, one of its checkpoints, or pictures made elsewhere")
    add("settings", nargs="*", help="of the suite: key=value")
    add("--suite", required=True, help=", ".join(kinds(SUITES)))
    add("--out", type=Path, help="a folder; without it evaluations/ of the run")
    add("--npz", action="store_true", help="also write samples.npz, as ADM's evaluator reads it")
    add("--size", type=int, help="crop pictures made elsewhere to such squares; shards need it")
    add_sampling(parser)


def run(options: argparse.Namespace) -> None:
    """evaluation.json, a table, a sheet, plots; the same command resumes."""
    suite, cluster = suite_of(options.suite, options.settings), cluster_of(options)
    texts: list[str] = []
    loaded = load(options, cluster) if _is_run(options.run) else None
    if loaded is not None:
        pictures, making, folder, texts = _draw(loaded, suite, cluster, options)
    else:
        folder = options.out or _beside(options.run)
        cluster.from_first(lambda: open_folder(folder))
        pictures = of_path(options.run, size=options.size)
        digest = cluster.from_first(pictures.digest)
        making = Making(pictures=f"{pictures.name} {digest}", regscale=__version__)
    found = judge(suite, pictures, making, folder, cluster, name=options.suite, texts=texts)
    if loaded is not None:
        cluster.from_first(lambda: _write_steps(found, loaded.run, making, folder))
    if options.npz:
        cluster.from_first(lambda: pictures.write_npz(folder / "samples.npz"))


def judge(
    suite: Suite,
    pictures: Pictures,
    making: Making,
    folder: Path,
    cluster: Cluster,
    *,
    name: str,
    texts: Sequence[str] = (),
) -> report.Evaluation:
    """Measure and write; `texts` are what the pictures were drawn for. Collective."""
    outcome = suite.measure(pictures, Place(cluster=cluster, folder=folder))
    found = replace(report.evaluation(name, making, outcome.figures), where=str(folder))
    cluster.from_first(lambda: _write(found, outcome.text, pictures, texts, making, folder))
    return found


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or is_one(path)


def _draw(
    loaded: Loaded, suite: Suite, cluster: Cluster, options: argparse.Namespace
) -> tuple[Pictures, Making, Path, list[str]]:
    guidance = guidance_of(loaded.config.sampling.guidance, options)
    making = making_of(loaded, suite, guidance, unit=options.unit)
    wanted = suite.wanted(loaded.sampler.num_classes)
    label = xxhash.xxh3_64_hexdigest(f"{making} {many.digest(wanted)}".encode())[:8]
    name = f"{options.suite}-step-{loaded.reader.step:08d}-{label}"
    folder: Path = options.out or loaded.run / "evaluations" / name
    pictures = draw_into(folder, loaded, suite, guidance, making, cluster, options)
    return pictures, making, folder, [each.text for each in wanted]


def draw_into(
    folder: Path,
    loaded: Loaded,
    suite: Suite,
    guidance: GuidanceConfig,
    making: Making,
    cluster: Cluster,
    options: argparse.Namespace,
) -> Pictures:
    """The images of a suite below a folder, those that are missing drawn. Collective."""
    wanted = suite.wanted(loaded.sampler.num_classes)
    many.draw(
        loaded.sampler,
        wanted,
        folder / "images",
        guidance=guidance,
        facts={k: v for k, v in making.values().items() if v is not None and k != "unit"},
        cluster=cluster,
        batch_size=options.batch_size,
        unit=options.unit,
    )
    paths = [many.image_path(folder / "images", index) for index in range(len(wanted))]
    return of_files(paths, name=str(folder / "images"))


def _write(
    found: report.Evaluation,
    text: str,
    pictures: Pictures,
    texts: Sequence[str],
    making: Making,
    folder: Path,
) -> None:
    told = "\n\n".join(filter(None, (report.table(found), text)))
    path = report.write(found, folder)
    (folder / "evaluation.txt").write_text(told + "\n")
    images = pictures.head(SHEET)
    sheet = captioned(images, texts[:SHEET]) if texts else grid(images, columns=8)
    save_png(sheet, folder / "sheet.png", _facts(making))
    save_png(bars(found), folder / "figures.png", _facts(making))
    log.info("%s\n\n%s", told, path)


def _write_steps(found: report.Evaluation, run: Path, making: Making, folder: Path) -> None:
    """steps.png, where the run was evaluated alike at other steps."""
    plot = over_steps(found, of_run(run))
    if plot is not None:
        save_png(plot, folder / "steps.png", _facts(making))


def _facts(making: Making) -> dict[str, object]:
    return {name: value for name, value in making.values().items() if value is not None}


def _beside(path: Path) -> Path:
    """Where the evaluation of pictures made elsewhere is written."""
    if not path.exists():
        raise RegscaleError(
            path,
            "is neither a run folder nor pictures",
            found="no such path",
            fix="Give a folder such as runs/digits, a folder of pictures, an .npz, or shards.",
        )
    name = path.expanduser().resolve().name.removesuffix(".npz")
    return path.expanduser().resolve().parent / f"{name}-evaluation"
