"""Draw pictures: python -m regscale.sample --class 207 [--checkpoint runs/reg] [--seed 0]."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor
from tqdm import tqdm

from regscale import __version__, assemble
from regscale.assemble import Loaded
from regscale.config import Invalid, kind_of, to_values
from regscale.errors import RegscaleError
from regscale.log import run_command
from regscale.sampling import GuidanceConfig
from regscale.sampling.pictures import grid, open_folder, save_png, to_picture

log = logging.getLogger(__name__)

LONGEST_NAME = 120  # bytes of a text in the name of a file, of the 255 that file systems take


def sample(
    loaded: Loaded,
    texts: Sequence[str],
    *,
    seeds: Sequence[int],
    guidance: GuidanceConfig | None = None,
    batch_size: int = 32,
) -> Tensor:
    """One image (3, SH, SW) uint8 for each text and each seed, text by text: (B, 3, SH, SW).

    The same text and seed give the same image whatever the batch size.
    """
    guidance = guidance or loaded.config.sampling.guidance
    wanted = [(text, seed) for text in texts for seed in seeds]
    conditioner, images = loaded.sampler.conditioner, []
    with tqdm(total=len(wanted), disable=None, unit="image") as bar:
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            condition = conditioner.parse([text for text, _ in part])
            images.append(loaded.sampler(condition, [seed for _, seed in part], guidance))
            bar.update(len(part))
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
    folder = options.checkpoint or newest_run(Path("runs"))
    loaded = assemble.trained(folder, device=options.device, decay=options.ema)
    _refuse_other_condition(loaded, options, folder)
    guidance = _guidance(loaded.config.sampling.guidance, options)
    texts = list(options.texts or options.prompt or loaded.sampler.conditioner.examples())
    seeds = range(options.seed, options.seed + options.num_images)
    loaded.sampler.conditioner.parse(texts)  # a wrong name is told before any work
    out = options.out or folder / "samples" / "drawn"
    open_folder(out)
    images = sample(loaded, texts, seeds=seeds, guidance=guidance, batch_size=options.batch_size)
    facts = _facts(loaded, guidance, folder)
    for place, image in enumerate(images):
        text, seed = texts[place // len(seeds)], seeds[place % len(seeds)]
        path = out / f"{_file_name(text)}-seed{seed}.png"
        save_png(to_picture(image), path, {"condition": text, "seed": seed, **facts})
    sheet = grid(images, columns=len(seeds), row_names=texts)
    save_png(sheet, out / "grid.png", {"conditions": ", ".join(texts), "seeds": seeds, **facts})
    log.info("%s pictures and grid.png in %s", len(images), out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m regscale.sample", description=main.__doc__)
    add = parser.add_argument
    add("--class", dest="texts", nargs="+", help="numbers or names, as 207 or 'golden retriever'")
    add("--prompt", nargs="+", help="texts, for a run that was trained on text")
    add("--checkpoint", type=Path, help="a run folder; without it the newest of runs/")
    add("--num-images", type=int, default=8, help="of each class, with seeds from --seed on")
    add("--seed", type=int, default=0, help="of the first image")
    add("--guidance-scale", type=float, help="of the image; 1 is none")
    add(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="times; 0 is data"
    )
    add("--token-guidance-scale", type=float, help="of the entangled tokens")
    add("--token-guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"))
    add("--ema", type=float, help="the decay of the averaged weights to use")
    add("--batch-size", type=int, default=32)
    add("--device", default="auto")
    add("--out", type=Path, help="a folder; without it samples/drawn of the run")
    return parser


def _refuse_other_condition(loaded: Loaded, options: argparse.Namespace, folder: Path) -> None:
    if options.num_images < 1 or options.batch_size < 1:
        raise RegscaleError(
            "--num-images, --batch-size",
            "are positive",
            found=f"{options.num_images}, {options.batch_size}",
            fix="Give 1 or more.",
        )
    if options.texts and loaded.sampler.model.reads_text:
        raise RegscaleError(
            "--class",
            f"{folder} was trained on text",
            found=f"conditioning {kind_of(loaded.config.conditioning)}",
            fix="Use --prompt.",
        )
    if options.prompt and not loaded.sampler.model.reads_text:
        raise RegscaleError(
            "--prompt",
            f"{folder} was trained on classes, not on text",
            found=f"conditioning {kind_of(loaded.config.conditioning)}",
            fix="Use --class with a number or a name, or a run that was trained on text.",
        )


def _file_name(text: str) -> str:
    """Of a class or prompt; a long one is cut, and told apart by a number."""
    name = text.replace(" ", "-").replace("/", "-")
    if len(name.encode()) <= LONGEST_NAME:
        return name or "empty"
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{crc32(text.encode()):08x}"


def _guidance(config: GuidanceConfig, options: argparse.Namespace) -> GuidanceConfig:
    changes = {
        "scale": options.guidance_scale,
        "token_scale": options.token_guidance_scale,
        "interval": options.guidance_interval and tuple(options.guidance_interval),
        "token_interval": options.token_guidance_interval
        and tuple(options.token_guidance_interval),
    }
    try:
        return replace(config, **{k: v for k, v in changes.items() if v is not None})
    except Invalid as error:
        raise RegscaleError(
            f"guidance {error.key}", error.what, found=error.found, fix=error.fix
        ) from error


def _facts(loaded: Loaded, guidance: GuidanceConfig, folder: Path) -> dict[str, object]:
    solver = loaded.config.sampling.solver
    return {
        "guidance": to_values(guidance),
        "solver": {"kind": kind_of(solver), **to_values(solver)},
        "checkpoint": f"{folder.name} step {loaded.reader.step}",
        "ema": loaded.decay,
        "regscale": __version__,
    }


if __name__ == "__main__":
    run_command(main)
