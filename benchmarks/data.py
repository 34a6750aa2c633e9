"""Measure the loader beside the published way and webdataset, and what a start and a resume cost.

    python -m benchmarks.data --out docs/benchmarks/data.json

All ways read the same samples from the page cache, turn by turn in one run, and only ratios within
a run are compared. A bar that is missed is named and the status is 1:

- latents alone, fully shuffled: 3 x the published way (`np.load` of a published file a sample,
  PyTorch's collation) and 1 x webdataset's sequential rate over the same shards; neither
  draws noise, so regscale draws none here. With the noise of a step, which the published loop
  draws on the device, it is reported without a bar.
- latents and PNG pictures: 1 x the published way with the same files. JPEG and WebP are reported.
- `prepare encode` in batches: batch 1's numbers to 1e-5 in ceil(n / batch) calls of each model.
- the first batch after a start or a resume anywhere: 1 s. Private memory over epochs: 8 MiB.
"""

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import _data_costs, _data_made, _data_ways
from benchmarks._data_made import FORMATS, Size
from benchmarks._data_ways import Reading, Way
from benchmarks._step_timing import machine
from regscale.log import run_command

OVER_PUBLISHED, OVER_WEBDATASET, PICTURES_OVER_PUBLISHED = 3.0, 1.0, 1.0
START_SECONDS, GROWTH_MIB, LARGEST_DIFFERENCE = 1.0, 8.0, 1e-5
NOISE = _data_costs.NOISE


def measure(
    root: Path, size: Size, reading: Mapping[int, Reading], *, repeats: int
) -> dict[str, Any]:
    """All figures, as JSON values; `reading` has a case for each number of workers."""
    published = _data_made.published(root / "published", size)
    folders = {
        name: _data_made.shards(root / name, size, dtype=dtype)
        for name, dtype in (("fp32", "float32"), ("fp16", "float16"))
    }
    pictures = {
        name: _data_made.shards(root / name, size, dtype="float16", image=name) for name in FORMATS
    }
    few = replace(size, pictures=min(48, size.pictures))
    encoded = _data_made.shards(root / "few", few, dtype="float16", image="png")
    workers = list(reading)
    return {
        "latents": {
            f"{n} workers": _rates(
                _latents(published, folders, size, reading[n]), reading[n], repeats
            )
            for n in workers
        },
        "latents_and_pictures": {
            f"{n} workers": _rates(_pictures(published, pictures, size, r), r, repeats)
            for n in workers
            for r in [_fewer(reading[n])]
        },
        "encode": _data_costs.encoding(
            root, encoded, few, batch=min(32, few.pictures), repeats=repeats
        ),
        "seconds_to_first_batch": {
            f"{n} workers": _data_costs.starts(
                folders["fp16"], batch_size=reading[n].batch_size, num_workers=n, repeats=repeats
            )
            for n in workers
        },
        "private_memory": {
            f"{n} workers": _data_costs.memory(
                folders["fp16"], batch_size=reading[n].batch_size, num_workers=n, epochs=4
            )
            for n in workers
        },
    }


def _latents(
    published: Path, folders: Mapping[str, Path], size: Size, reading: Reading
) -> dict[str, Way]:
    ways = {
        "published": _data_ways.published(
            published, reading, num_samples=size.samples, images=False
        )
    }
    for name, folder in folders.items():
        ways[f"webdataset {name}"] = _data_ways.sequential(folder, reading)
        for noise in (None, NOISE):
            ways[f"regscale {name}{', with noise' if noise else ''}"] = _data_ways.regscale(
                folder, reading, images=False, size=size.image_size, noise=noise
            )
    return ways


def _pictures(
    published: Path, folders: Mapping[str, Path], size: Size, reading: Reading
) -> dict[str, Way]:
    ways = {
        "published": _data_ways.published(
            published, reading, num_samples=size.pictures, images=True
        )
    }
    return ways | {
        f"regscale {name}": _data_ways.regscale(folder, reading, images=True, size=size.image_size)
        for name, folder in folders.items()
    }


def _fewer(reading: Reading) -> Reading:
    """Pictures take twenty times as long as latents."""
    return Reading(
        batch_size=max(1, reading.batch_size // 8),
        num_batches=max(12, reading.num_batches // 3),
        num_workers=reading.num_workers,
    )


def _rates(ways: Mapping[str, Way], reading: Reading, repeats: int) -> dict[str, Any]:
    """Samples a second and the ratios of neighbours in a turn, medians over turns; every other turn
    runs backwards. The first turn, which fills the page cache, is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            rates[name].append(_data_ways.rate(ways[name], reading))
    report: dict[str, Any] = {}
    for name, values in rates.items():
        own = values[1:]
        report[name] = {"samples_per_second": round(median(own), 1)}
        for other in _others(name, rates):
            pairs = [a / b for a, b in zip(own, rates[other][1:], strict=True)]
            report[name][f"over {other}"] = round(median(pairs), 3)
    return report


def _others(name: str, names: Mapping[str, object]) -> list[str]:
    """What a way is compared with: the published way, and webdataset over the same shards."""
    if not name.startswith("regscale"):
        return []
    stored = name.removeprefix("regscale ").partition(",")[0]
    return [other for other in ("published", f"webdataset {stored}") if other in names]


def missed(figures: Mapping[str, Any]) -> list[str]:
    """The bars that the figures miss, each in a line."""
    found = []

    def bar(what: str, value: float, least: float) -> None:
        if value < least:
            found.append(f"{what}: {value:g}, the bar is {least:g}")

    for workers, ways in figures["latents"].items():
        for name in ("fp32", "fp16"):
            row = ways[f"regscale {name}"]
            where = f"latents, {name}, {workers}"
            bar(f"{where}, over the published way", row["over published"], OVER_PUBLISHED)
            bar(f"{where}, over webdataset", row[f"over webdataset {name}"], OVER_WEBDATASET)
    for workers, ways in figures["latents_and_pictures"].items():
        value = ways["regscale png"]["over published"]
        bar(f"latents and PNG, {workers}, over the published way", value, PICTURES_OVER_PUBLISHED)
    encode = figures["encode"]
    bar("encode, - largest difference", -encode["largest_difference"], -LARGEST_DIFFERENCE)
    bar("encode, - calls", -encode["calls_of_two_models"], -encode["calls_wanted"])
    for workers, seconds in figures["seconds_to_first_batch"].items():
        for place, value in seconds.items():
            bar(f"first batch at {place}, {workers}, - seconds", -value, -START_SECONDS)
    for workers, memory in figures["private_memory"].items():
        bar(f"memory, {workers}, - MiB of growth", -memory["growth_mib"], -GROWTH_MIB)
    return found


def lines(figures: Mapping[str, Any]) -> list[str]:
    """A table to read."""
    made = []
    for part in ("latents", "latents_and_pictures"):
        for workers, ways in figures[part].items():
            made.append(f"{part.replace('_', ' ')}, {workers}")
            for name, row in ways.items():
                ratios = [f"{v:.2f} x {k[5:]}" for k, v in row.items() if k.startswith("over ")]
                rate = f"{row['samples_per_second']:>10,.0f} samples/s"
                made.append(f"  {name:<28}{rate}   {', '.join(ratios)}".rstrip())
    for part in ("encode", "seconds_to_first_batch", "private_memory"):
        made.append(f"{part.replace('_', ' ')}: {json.dumps(figures[part])}")
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=8192, help="with latents alone")
    parser.add_argument("--pictures", type=int, default=256, help="samples with a picture")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument(
        "--batch-size", type=int, default=256, help="of latents; an eighth with pictures"
    )
    parser.add_argument("--batches", type=int, default=48, help="of a turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--folder", type=Path, help="for the samples; else the temporary folder")
    parser.add_argument("--out", type=Path, help="a JSON file; else the report is printed")
    return parser


def main(arguments: list[str]) -> None:
    """Make the samples, measure, and judge."""
    o = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    size = Size(
        samples=o.samples,
        samples_a_shard=min(512, -(-o.samples // 8)),
        pictures=o.pictures,
        image_size=o.image_size,
    )
    reading = {
        n: Reading(batch_size=o.batch_size, num_batches=o.batches, num_workers=n) for n in o.workers
    }
    with TemporaryDirectory(dir=o.folder) as root:
        figures = measure(Path(root), size, reading, repeats=o.repeats)
    short = missed(figures)
    about = machine(torch.device("cpu"))
    about["versions"] |= {  # type: ignore[operator]
        name: version(name) for name in ("numpy", "pillow", "webdataset", "xxhash")
    }
    report = {
        "command": " ".join(["python -m benchmarks.data", *arguments]),
        "date": date.today().isoformat(),
        "system": platform.platform(),
        **about,
        "settings": {**vars(o), "folder": None, "out": None},
        **figures,
        "missed": short,
    }
    if o.out is not None:
        o.out.parent.mkdir(parents=True, exist_ok=True)
        o.out.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(lines(figures)) if o.out else json.dumps(report, indent=2))
    for line in short:
        print(f"missed: {line}", file=sys.stderr)
    if short:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
