"""Draw pictures: python -m regscale.sample --class 207 [--checkpoint runs/reg] [--seed 0]."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
import xxhash
from torch import Tensor

from regscale import __version__, assemble
from regscale.assemble import Loaded
from regscale.cluster import Cluster, connect, join, place
from regscale.config import kind_of, to_values
from regscale.data._images import Unusable, decode
from regscale.errors import RegscaleError
from regscale.log import run_command
from regscale.measuring import checkpoint_of, making
from regscale.progress import progress
from regscale.resize import patch_pixels, resized
from regscale.sampling import GuidanceConfig, TargetGuidance, many
from regscale.sampling.options import add_guidance, add_ways, guidance_of, sampler_of
from regscale.sampling.pictures import grid, open_folder, save_png, to_picture
from regscale.sampling.prompts import read_prompts
from regscale.sampling.sizes import size_of, size_of_aspect, written_size

log = logging.getLogger(__name__)

LONGEST_NAME = 120  # bytes of a text in the name of a file, of the 255 that file systems take
SHEET = 64  # pictures of a large job that its grid shows
Given = Sequence[Tensor | None]


def sample(
    loaded: Loaded,
    texts: Sequence[str],
    *,
    seeds: Sequence[int],
    guidance: GuidanceConfig | None = None,
    batch_size: int = 32,
    given: Given = (),
) -> Tensor:
    """One image (3, SH, SW) uint8 for each text and each seed, text by text: (B, 3, SH, SW).

    An image is that of its text and seed; `batch_size` decides no more than its last bits. `given`
    are tokens (1, K, R) that all images have, of each target or None.
    """
    guidance = guidance or loaded.config.sampling.guidance
    wanted = [(text, seed) for text in texts for seed in seeds]
    conditioner, images = loaded.sampler.conditioner, []
    with progress(len(wanted), what="drawing", unit="images") as advance:
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            condition = conditioner.parse([text for text, _ in part])
            images.append(loaded.sampler(condition, [seed for _, seed in part], guidance, given))
            advance(len(part))
    return torch.cat(images)


def newest_run(runs: Path) -> Path:
    """The run folder whose checkpoints changed last."""
    folders = [path.parent for path in runs.glob("*/checkpoints") if any(path.glob("step-*"))]
    if not folders:
        raise RegscaleError(
            runs,
            "holds no run with a checkpoint",
            found="no checkpoint" if runs.is_dir() else "no such folder",
            fix="Make one: python -m regscale.train configs/digits.yaml, or give --checkpoint.",
        )
    return max(folders, key=lambda folder: (folder / "checkpoints").stat().st_mtime)


def main(arguments: list[str]) -> None:
    """PNG files with their making in their text, and a grid of them."""
    options = _parser().parse_args(arguments)
    _refuse_counts(options)
    cluster = _cluster(options)
    folder = cluster.from_first(lambda: options.checkpoint or newest_run(Path("runs")))
    loaded = assemble.trained(
        folder,
        device=options.device,
        decay=options.ema,
        sampling=options.sampling,
        cluster=cluster,
    )
    _refuse_other_condition(loaded, options, folder)
    guidance = guidance_of(loaded.config.sampling.guidance, options)
    loaded = _as_asked(loaded, guidance, options)
    given = _given(loaded, options.reference)
    facts = _facts(loaded, guidance, options)
    asked = _Asked(loaded, guidance, given, facts, cluster, options)
    (_draw_file if options.prompts else _draw_few)(asked)


def _cluster(options: argparse.Namespace) -> Cluster:
    """This process; for a file of prompts with a line to the others, who draw it too."""
    own = join(options.device)
    return connect(own, timeout_seconds=many.WAIT_SECONDS) if options.prompts else own


class _Asked(NamedTuple):
    """What to draw from, how, and what is written beside each picture."""

    loaded: Loaded
    guidance: GuidanceConfig
    given: Given
    facts: dict[str, object]
    cluster: Cluster
    options: argparse.Namespace


def _draw_few(asked: _Asked) -> None:
    """Each text with each seed, in files named by both."""
    loaded, guidance, given, facts, _, options = asked
    conditioner = loaded.sampler.conditioner
    texts = list(options.texts or options.prompt or conditioner.examples())
    seeds = range(options.seed, options.seed + (options.num_images or 8))
    conditioner.parse(texts)  # a wrong name is told before any work
    out = options.out or loaded.run / "samples" / "drawn"
    open_folder(out)
    images = sample(
        loaded, texts, seeds=seeds, guidance=guidance, batch_size=options.batch_size, given=given
    )
    for number, image in enumerate(images):
        text, seed = texts[number // len(seeds)], seeds[number % len(seeds)]
        path = out / f"{_file_name(text)}-seed{seed}.png"
        save_png(to_picture(image), path, {"condition": text, "seed": seed, **facts})
    sheet = grid(images, columns=len(seeds), row_names=texts)
    save_png(sheet, out / "grid.png", {"conditions": ", ".join(texts), "seeds": seeds, **facts})
    log.info("%s pictures and grid.png in %s", len(images), out)


def _draw_file(asked: _Asked) -> None:
    """Each line of a file, by all processes together; what is there is not drawn again."""
    loaded, guidance, given, facts, cluster, options = asked
    wanted = read_prompts(options.prompts, seed=options.seed)
    out = options.out or loaded.run / "samples" / options.prompts.stem
    drawn = many.draw(
        loaded.sampler,
        wanted,
        out,
        guidance=guidance,
        facts=facts,
        cluster=cluster,
        batch_size=options.batch_size,
        unit=options.batch_size,
        given=given,
    )
    if cluster.first:
        sheet = grid(many.read_images(out, range(min(SHEET, len(wanted)))), columns=8)
        save_png(sheet, out / "grid.png", facts)
        log.info("%s of %s pictures drawn, and grid.png, in %s", drawn, len(wanted), out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m regscale.sample", description=main.__doc__)
    what = parser.add_mutually_exclusive_group().add_argument
    what("--class", dest="texts", nargs="+", help="numbers or names, as 207 or 'golden retriever'")
    what("--prompt", nargs="+", help="texts, for a run that was trained on text")
    what("--prompts", type=Path, help="a .jsonl or .txt, an image a line; again: resumes")
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a run folder or one checkpoint of it; else the newest run")
    add("--num-images", type=int, help="of each class or prompt, with seeds from --seed on; 8")
    add("--seed", type=int, default=0, help="of the first image")
    add_guidance(parser)
    add_ways(parser)
    how = parser.add_mutually_exclusive_group().add_argument
    how("--reference", type=Path, help="a picture whose entangled token all images have")
    how("--tokens-first", action="store_true", help="denoise independent tokens before the image")
    size = parser.add_mutually_exclusive_group().add_argument
    size("--size", help="HEIGHTxWIDTH in pixels, for a model with RoPE")
    size("--aspect", help="WIDTH:HEIGHT, with about as many pixels as in training")
    add("--ema", type=float, help="the decay of the averaged weights to use")
    add("--batch-size", type=int, default=many.UNIT, help="images drawn together")
    add("--device", default="auto")
    add("--out", type=Path, help="a folder; without it samples/ of the run")
    return parser


def _refuse_counts(options: argparse.Namespace) -> None:
    if min(1 if options.num_images is None else options.num_images, options.batch_size) < 1:
        raise RegscaleError(
            "--num-images, --batch-size",
            "are positive",
            found=f"{options.num_images}, {options.batch_size}",
            fix="Give 1 or more.",
        )
    if options.prompts and options.num_images is not None:
        raise RegscaleError(
            "--num-images",
            "is not for --prompts, of which each line is one image",
            found=options.num_images,
            fix="Write a prompt once for each of its images, with a seed.",
        )
    if not options.prompts and place().world_size > 1:
        raise RegscaleError(
            "--class, --prompt",
            "are for one process: several would all draw the same",
            found=f"{place().world_size} processes",
            fix="Start one, or give a file: --prompts.",
        )


def _refuse_other_condition(loaded: Loaded, options: argparse.Namespace, folder: Path) -> None:
    found = f"conditioning {kind_of(loaded.config.conditioning)}"
    if options.texts and loaded.sampler.model.reads_text:
        raise RegscaleError(
            "--class", f"{folder} was trained on text", found=found, fix="Use --prompt."
        )
    for option in ("prompt", "negative_prompt"):
        if getattr(options, option) is not None and not loaded.sampler.model.reads_text:
            raise RegscaleError(
                f"--{option.replace('_', '-')}",
                f"{folder} was trained on classes, not on text",
                found=found,
                fix="Use --class with a number or a name, or a run that was trained on text.",
            )


def _as_asked(loaded: Loaded, guidance: GuidanceConfig, options: argparse.Namespace) -> Loaded:
    """At the size and in the way of the options."""
    own, unit = loaded.image_size, patch_pixels(loaded)
    if options.size:
        loaded = resized(loaded, size_of(options.size, unit))
    elif options.aspect:
        loaded = resized(loaded, size_of_aspect(options.aspect, own, unit))
    pixels = [height * width for height, width in (own, loaded.image_size)]
    sampler = sampler_of(
        loaded.sampler,
        options,
        guidance=guidance,
        names=list(loaded.config.entangled),
        enlarged=pixels[1] / pixels[0],
    )
    return replace(loaded, sampler=sampler)


def _given(loaded: Loaded, reference: Path | None) -> list[Tensor | None]:
    """The tokens of a picture, of the targets beside which the image was trained at any time."""
    if reference is None:
        return []
    schedule = loaded.sampler.schedule
    may = [t.may_be_given for t in schedule.targets] if schedule else []
    if not any(may):
        kinds = {name: e.schedule.kind for name, e in loaded.config.entangled.items()}
        raise RegscaleError(
            "--reference",
            "needs an entangled target with times of its own, whose token may be given",
            found=", ".join(f"{n} with schedule {k}" for n, k in kinds.items()) or "no target",
            fix="Train with entangle.NAME.schedule.kind=independent.",
        )
    try:
        side = min(loaded.towers.image_size or loaded.image_size)
        image = decode(reference.read_bytes(), side, crop="centre", chance=(0, 0, 0))
    except (OSError, Unusable) as error:
        reason = getattr(error, "strerror", None) or error
        raise RegscaleError(
            f"--reference {reference}", "cannot be read", found=reason, fix="Give a picture."
        ) from error
    device = loaded.sampler.device
    return list(loaded.towers.to(device).tokens(image[None].to(device), may))


def _file_name(text: str) -> str:
    """Of a class or prompt. What a name cannot hold whole is told apart by a number."""
    name = text.replace(" ", "-").replace("/", "-")
    if text and len(name.encode()) <= LONGEST_NAME and name.replace("-", " ") == text:
        return name
    start = name.encode()[:LONGEST_NAME].decode(errors="ignore") or "empty"
    return f"{start}-{crc32(text.encode()):08x}"


def _facts(
    loaded: Loaded, guidance: GuidanceConfig, options: argparse.Namespace
) -> dict[str, object]:
    """What all pictures of a command have in common."""
    sampler, solver = loaded.sampler, loaded.config.sampling.solver
    how = making(loaded.config, sampler, guidance, decay=loaded.decay)
    own = zip(loaded.config.entangled, sampler.target_guidance, strict=True)
    targets = {name: asdict(guidance) for name, guidance in own if guidance != TargetGuidance()}
    picture = options.reference and xxhash.xxh3_64_hexdigest(options.reference.read_bytes())
    asked = {
        "negative_prompt": options.negative_prompt,
        "reference": options.reference and f"{options.reference.name} xxh3 {picture}",
        "tokens_first": options.tokens_first or None,
        "target_guidance": targets or None,
    }
    return {
        "guidance": to_values(guidance),
        "solver": {"kind": kind_of(solver), **to_values(solver)},
        "shift": sampler.schedule.grid_shift if sampler.schedule else 1.0,
        "size": written_size(loaded.image_size),
        "precision": how.precision,
        "attention": how.attention,
        "checkpoint": checkpoint_of(loaded.run, loaded.reader),
        "ema": loaded.decay,
        "regscale": __version__,
        **{name: value for name, value in asked.items() if value is not None},
    }


if __name__ == "__main__":
    run_command(main)
