"""Folders as the official scorers of text-to-image benchmarks read them.

GenEval (github.com/djghosh13/geneval): `{i:05d}/metadata.jsonl`, `{i:05d}/samples/{k:04d}.png`.
DPG-Bench (github.com/TencentQQGYLab/ELLA): one PNG a prompt, a 2 x 2 grid of four pictures, named
as the prompt's file. HPSv2 (github.com/tgxs002/HPSv2): `{style}/{i:05d}.jpg`.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from regscale.errors import RegscaleError
from regscale.evaluation.geneval import PER_PROMPT, Task
from regscale.files import replacing

HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
HPS_QUALITY = 95  # of JPEG


def write_geneval(tasks: Sequence[Task], images: Sequence[Path], folder: Path) -> None:
    """Pictures of task i are images 4 i to 4 i + 3."""
    _enough("GenEval", images, len(tasks) * PER_PROMPT)
    for place, task in enumerate(tasks):
        samples = folder / f"{place:05d}" / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        with replacing(samples.parent / "metadata.jsonl") as file:
            file.write((task.line() + "\n").encode())
        for number, path in enumerate(images[place * PER_PROMPT : (place + 1) * PER_PROMPT]):
            shutil.copyfile(path, samples / f"{number:04d}.png")


def write_dpg(names: Sequence[str], images: Sequence[Path], folder: Path) -> None:
    """`names` are those of the prompts' files, without `.txt`; four pictures each, row by row."""
    _enough("DPG-Bench", images, len(names) * PER_PROMPT)
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        four = [_opened(path) for path in images[place * PER_PROMPT : (place + 1) * PER_PROMPT]]
        width, height = four[0].size
        grid = Image.new("RGB", (2 * width, 2 * height))
        for number, picture in enumerate(four):
            grid.paste(picture, (number % 2 * width, number // 2 * height))
        with replacing(folder / f"{name}.png") as file:
            grid.save(file, "PNG")


def write_hpsv2(styles: Sequence[str], images: Sequence[Path], folder: Path) -> None:
    """`styles` names the style of each prompt; prompts are numbered within their style."""
    _enough("HPSv2", images, len(styles))
    check_styles(styles)
    counts = dict.fromkeys(HPS_STYLES, 0)
    for style, path in zip(styles, images, strict=True):
        (folder / style).mkdir(parents=True, exist_ok=True)
        with replacing(folder / style / f"{counts[style]:05d}.jpg") as file:
            _opened(path).save(file, "JPEG", quality=HPS_QUALITY)
        counts[style] += 1


def check_styles(styles: Iterable[str]) -> None:
    """Refuse a style that the scorer does not know."""
    unknown = sorted(set(styles) - set(HPS_STYLES))
    if unknown:
        raise RegscaleError(
            "HPSv2", f"has the styles {', '.join(HPS_STYLES)}", found=unknown[0], fix="Use these."
        )


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _enough(name: str, images: Sequence[Path], number: int) -> None:
    if len(images) != number:
        raise RegscaleError(
            name, f"needs {number:,} pictures", found=f"{len(images):,}", fix="Draw all of them."
        )
