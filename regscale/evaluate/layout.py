"""Draw the prompts of GenEval, DPG-Bench or HPSv2 into the folders that their scorers read.

PROMPTS: GenEval's evaluation_metadata.jsonl, DPG-Bench's folder of .txt files, or a JSON object of
HPSv2's {style: [prompt, ...]}.
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regscale.errors import RegscaleError
from regscale.evaluate._run import add_sampling, cluster_of, load, making_of
from regscale.evaluation._references import file_digest
from regscale.evaluation.geneval import PER_PROMPT, read_tasks
from regscale.evaluation.layouts import (
    check_styles,
    write_dpg,
    write_geneval,
    write_hpsv2,
)
from regscale.sampling import many
from regscale.sampling.many import Wanted
from regscale.sampling.options import guidance_of

log = logging.getLogger(__name__)

Writer = Callable[[Any, Sequence[Path], Path], None]
WRITERS: dict[str, Writer] = {"geneval": write_geneval, "dpg": write_dpg, "hpsv2": write_hpsv2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run folder that was trained on text")
    add("--benchmark", choices=list(WRITERS), required=True)
    add("--prompts", type=Path, required=True)
    add("--seed", type=int, default=0, help="of the first image; counted on")
    add("--out", type=Path, required=True, help="images/ and the benchmark's folder go below")
    add_sampling(parser)


def run(options: argparse.Namespace) -> None:
    """The images once, with their making, and the official layout beside them."""
    texts, names = _prompts(options.benchmark, options.prompts)
    per_prompt = 1 if options.benchmark == "hpsv2" else PER_PROMPT
    repeated = [text for text in texts for _ in range(per_prompt)]
    wanted = [Wanted(text, options.seed + i) for i, text in enumerate(repeated)]
    cluster = cluster_of(options)
    loaded = load(options, cluster)
    guidance = guidance_of(loaded.config.sampling.guidance, options)
    images = options.out / "images"
    facts = _Asked(options.prompts, wanted)
    making = making_of(loaded, facts, guidance, unit=options.unit)
    many.draw(
        loaded.sampler,
        wanted,
        images,
        guidance=guidance,
        facts={k: v for k, v in making.values().items() if v is not None and k != "unit"},
        cluster=cluster,
        batch_size=options.batch_size,
        unit=options.unit,
    )
    paths = [many.image_path(images, index) for index in range(len(wanted))]
    folder = options.out / options.benchmark
    cluster.from_first(lambda: WRITERS[options.benchmark](names, paths, folder))
    log.info("%s pictures of %s prompts in %s", f"{len(wanted):,}", f"{len(texts):,}", folder)


class _Asked:
    """What a suite says of its captions and seeds."""

    def __init__(self, path: Path, wanted: list[Wanted]) -> None:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        digest = file_digest(path) if path.is_file() else many.digest(wanted)
        self.labels = f"prompts {path.name} {digest}, {len(files)} files"
        self.seeds = f"{wanted[0].seed} to {wanted[-1].seed}"


def _prompts(benchmark: str, path: Path) -> tuple[list[str], Any]:
    """(the prompts, what the writer of the layout takes)."""
    if benchmark == "geneval":
        tasks = read_tasks(path)
        return [task.prompt for task in tasks], tasks
    try:
        if benchmark == "dpg":
            files = sorted(path.glob("*.txt"))
            found = [file.read_text().strip() for file in files], [file.stem for file in files]
        else:
            styles = json.loads(path.read_text())
            check_styles(styles)
            pairs = [(text, style) for style in sorted(styles) for text in styles[style]]
            found = [text for text, _ in pairs], [style for _, style in pairs]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, benchmark, error) from error
    if not found[0]:
        raise _unreadable(path, benchmark, "no prompt")
    return found


def _unreadable(path: Path, benchmark: str, found: object) -> RegscaleError:
    return RegscaleError(
        path,
        f"holds no prompts of {benchmark}",
        found=found,
        fix="DPG-Bench: its folder of .txt files; HPSv2: a JSON object {style: [prompt, ...]}.",
    )
