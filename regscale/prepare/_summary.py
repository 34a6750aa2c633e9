"""What a finished folder of shards says of itself: `shards.json`, `classes.txt`, and the log."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regscale.data import merge_folder
from regscale.errors import RegscaleError
from regscale.files import replacing
from regscale.prepare._packing import Job, replace, report_of

log = logging.getLogger(__name__)

SUMMARY = "shards.json"  # its "fields" are read when shards are indexed again
SETTINGS = "encode.json"  # how a folder's shards were encoded
CLASSES = "classes.txt"
NOTES = (".json", ".md", ".txt")


def finish(
    job: Job, *, classes: Sequence[str] = (), damage: Sequence[tuple[str, str]] = ()
) -> dict[str, dict[str, Any]]:
    """Join the indexes and sum up each folder; `damage` was found before any sample."""
    folders = sorted({name.rpartition("/")[0] for name in job.shards})
    made = {
        folder: _summary(job, folder, classes, damage if not folder else ()) for folder in folders
    }
    for folder, about in made.items():
        _tell(job.out / folder, about)
    return made


def _summary(
    job: Job, folder: str, classes: Sequence[str], damage: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    names = [name for name in job.shards if name.rpartition("/")[0] == folder]
    reports = {name: report_of(job.out, name) for name in names}
    full = [name for name, about in reports.items() if about["samples"]]
    removed = _sum(reports.values(), "removed")
    root = job.out / folder
    if not full:
        raise RegscaleError(
            root,
            "has no samples",
            found=", ".join(f"{count:,} removed: {why}" for why, count in removed.items()),
            fix="Take filters that let more pass, or look at the source.",
        )
    labels = {int(label): count for label, count in _sum(reports.values(), "labels").items()}
    about = {
        "fields": {name: {"identity": made} for name, made in job.identities.items()},
        "settings": dict(job.settings),
        "samples": sum(reports[name]["samples"] for name in full),
        "bytes": sum((job.out / name).stat().st_size for name in full),
        "shards": {name.rpartition("/")[2]: reports[name]["samples"] for name in full},
        "classes": len(classes) or len(labels),
        "class_counts": {str(label): labels[label] for label in sorted(labels)},
        "removed": dict(sorted(removed.items())),
        "damaged": [*damage, *(each for name in names for each in reports[name]["damaged"])],
    }
    replace(root / SUMMARY, json.dumps(about, indent=1) + "\n")
    if classes:
        replace(root / CLASSES, "".join(f"{name}\n" for name in classes))
    merge_folder(root, [job.out / name for name in full])
    return about


def summary_of(folder: Path) -> dict[str, Any]:
    """What a folder's summary says; nothing where there is none."""
    path = folder / SUMMARY
    try:
        about = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        about = None
    if isinstance(about, dict):
        return about
    raise RegscaleError(
        path,
        "says what a folder holds",
        found="no JSON object",
        fix='Take it away, or write {"fields": {}} and index again.',
    )


def carry(source: Path, out: Path, identities: Mapping[str, str]) -> None:
    """What a folder says of itself, to a folder of the same samples with other fields."""
    carry_notes(source, out)
    about = summary_of(source) | {
        "fields": {name: {"identity": made} for name, made in identities.items()},
        "bytes": sum(path.stat().st_size for path in out.glob("*.tar")),
    }
    replace(out / SUMMARY, json.dumps(about, indent=1) + "\n")


def carry_notes(source: Path, out: Path) -> None:
    """What users wrote beside the shards, such as the names of classes."""
    for path in sorted(source.iterdir()):
        if path.suffix in NOTES and path.name not in (SUMMARY, SETTINGS):
            with replacing(out / path.name) as file:
                file.write(path.read_bytes())


def _sum(reports: Any, what: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for about in reports:
        total.update(about[what])
    return total


def _tell(root: Path, about: dict[str, Any]) -> None:
    log.info(
        "%s: %s samples%s in %s shards, %.3g GB",
        root,
        f"{about['samples']:,}",
        f" of {about['classes']:,} classes" if about["classes"] else "",
        f"{len(about['shards']):,}",
        about["bytes"] / 1e9,
    )
    for reason, count in about["removed"].items():
        log.info("%s: %s removed: %s", root, f"{count:,}", reason)
    for sample, why in about["damaged"]:
        sys.stdout.write(f"{root}: sample {sample}: {why}\n")
