"""Search guidance scale and interval of a run on a budget; plot FID and IS against them.

Each evaluation draws the images of a suite with few samples: a sweep finds a region, and a figure
to publish is then measured there with all samples. The same command resumes.
"""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path

from regscale.assemble import Loaded
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
from regscale.evaluate.score import draw_into, judge
from regscale.evaluation.plot import panels
from regscale.evaluation.report import Evaluation
from regscale.evaluation.suites import Suite
from regscale.evaluation.sweep import INTERVALS, SCALES, Guidance, Point, best, search
from regscale.files import replacing
from regscale.sampling.options import guidance_of, with_guidance
from regscale.sampling.pictures import save_png

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run folder")
    add("settings", nargs="*", help="of the suite: key=value; few samples, as num_samples=5000")
    add("--suite", required=True, help=", ".join(kinds(SUITES)))
    add("--budget", type=int, default=16, help="evaluations, at most")
    add("--scales", type=float, nargs="+", default=SCALES)
    add("--intervals", nargs="+", metavar="LOW,HIGH", help="times; the first is of all scales")
    add("--out", type=Path, help="a folder; without it evaluations/sweep-SUITE of the run")
    add_sampling(parser)


def run(options: argparse.Namespace) -> None:
    """sweep.json and sweep.png; the best is told last."""
    suite, cluster = suite_of(options.suite, options.settings), cluster_of(options)
    intervals = [_interval(text) for text in options.intervals or []] or INTERVALS
    loaded = load(options, cluster)
    folder = options.out or loaded.run / "evaluations" / f"sweep-{options.suite}"

    def measure(guidance: Guidance) -> Point:
        found = _evaluate(loaded, suite, guidance, folder, cluster, options)
        distances = [e for e in found.entries if e.name.startswith(("FID", "FD"))]
        if not distances:
            raise RegscaleError(
                f"--suite {options.suite}",
                "has no Fréchet distance to search by",
                found=", ".join(entry.name for entry in found.entries),
                fix="Sweep with another suite.",
            )
        score = found.entry("IS")
        value = None if score is None else score.value
        return Point(guidance=guidance, distance=distances[0].value, score=value)

    points = search(measure, budget=options.budget, scales=options.scales, intervals=intervals)
    cluster.from_first(lambda: _write(points, folder))
    log.info("best: %s in %s", best(points), folder / "sweep.json")


def _evaluate(
    loaded: Loaded,
    suite: Suite,
    at: Guidance,
    folder: Path,
    cluster: Cluster,
    options: argparse.Namespace,
) -> Evaluation:
    own = guidance_of(loaded.config.sampling.guidance, options)
    guidance = with_guidance(own, {"scale": at.scale, "interval": (at.low, at.high)})
    making = making_of(loaded, suite, guidance, unit=options.unit)
    place = folder / f"scale-{at.scale:g}-interval-{at.low:g}-{at.high:g}"
    pictures = draw_into(place, loaded, suite, guidance, making, cluster, options)
    return judge(suite, pictures, making, place, cluster, name=options.suite)


def _write(points: list[Point], folder: Path) -> None:
    values = [asdict(p) | {"guidance": p.guidance._asdict()} for p in points]
    with replacing(folder / "sweep.json") as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())
    distances: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        scale, low, high = point.guidance
        distances.setdefault(f"[{low:g}, {high:g}]", []).append((scale, point.distance))
        if point.score is not None:
            scores.setdefault(f"[{low:g}, {high:g}]", []).append((scale, point.score))
    charts = {"Fréchet distance": distances} | ({"Inception Score": scores} if scores else {})
    save_png(panels(charts, x_name="guidance scale"), folder / "sweep.png", {"points": values})


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RegscaleError(
            "--intervals", "are pairs of times", found=repr(text), fix="Write 0.2,0.8."
        ) from error
    return low, high
