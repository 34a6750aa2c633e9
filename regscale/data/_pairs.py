"""The folders that REG and REPA prepare: pictures and posteriors, paired by number.

A picture and its posterior are found by the number in their names (img00000007.png and
img-mean-std-00000007.npy), whatever the order of the files; classes are in dataset.json.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regscale.data._fields import Array, array
from regscale.data._images import Unusable, is_picture
from regscale.errors import RegscaleError

PICTURES = ("imagenet_256_vae", "images")  # the folders of REG and REPA
MOMENTS = "vae-sd"
LABELS = "dataset.json"
ENCODER = "sd-vae-ft-mse"  # the published code encodes with it

NUMBER = re.compile(r"(\d+)\.\w+$")

Damage = list[tuple[str, str]]  # (file, what is wrong)


class Pair(NamedTuple):
    """A picture, its posterior and its class; files by their path below the root."""

    picture: str
    moments: str
    label: int


def picture_folder(root: Path, images: str, moments: str) -> str:
    """The folder of the pictures: `images`, or where that is empty REG's or REPA's."""
    names = (images,) if images else PICTURES
    there = [name for name in names if (root / name).is_dir()]
    if there and (root / moments).is_dir():
        return there[0]
    folders = sorted(path.name for path in root.glob("*") if path.is_dir())
    raise RegscaleError(
        root,
        f"has no folder {' or '.join(names)} beside {moments}",
        found=", ".join(folders[:8]) or ("none" if root.is_dir() else "no such folder"),
        fix="Give the folder that holds both; name them with images and moments.",
    )


def pairs(root: Path, images: str, moments: str) -> tuple[list[Pair], Damage]:
    """Pictures with posterior and label, in the order of their numbers, and what does not pair."""
    damage: Damage = []
    pictures = _numbered(root, images, damage)
    posteriors = _numbered(root, moments, damage)
    labels = _labels(root, (moments, images), damage)
    found = []
    for number in sorted(pictures.keys() | posteriors.keys() | labels.keys()):
        picture, posterior = pictures.get(number), posteriors.get(number)
        if picture and posterior and number in labels:
            found.append(Pair(picture, posterior, labels[number]))
            continue
        lacking = [
            *([] if picture else [f"picture in {images}"]),
            *([] if posterior else [f"posterior in {moments}"]),
            *([] if number in labels else [f"label in {LABELS}"]),
        ]
        name = picture or posterior or f"number {number}"
        damage.append((name, f"has no {' and no '.join(lacking)}"))
    return found, damage


def posterior(payload: bytes) -> Array:
    """Means and standard deviations (2C, H, W) of an npy file."""
    values = array(memoryview(payload))
    if values.ndim != 3 or values.shape[0] % 2:
        raise Unusable(f"an array of shape {values.shape}, no mean and std of (2C, H, W)")
    if not np.isfinite(values).all():
        raise Unusable("an array with numbers that are not finite")
    if (values[len(values) // 2 :] < 0).any():
        raise Unusable("an array with negative deviations: log-variance instead of std?")
    return values


def _numbered(root: Path, folder: str, damage: Damage) -> dict[int, str]:
    """Files below a folder by the number in their names."""
    found: dict[int, str] = {}
    for name in sorted(_files(root, folder)):
        number = _number(name)
        if number is None:
            damage.append((name, "has no number in its name"))
        elif number in found:
            damage.append((name, f"has the number of {found[number]}"))
        else:
            found[number] = name
    return found


def _files(root: Path, folder: str) -> Iterator[str]:
    """Pictures and arrays by their path below the root."""
    for parent, _, files in os.walk(root / folder):
        below = Path(parent).relative_to(root).as_posix()
        yield from (f"{below}/{f}" for f in files if is_picture(f) or f.endswith(".npy"))


def _number(name: str) -> int | None:
    match = NUMBER.search(name)
    return int(match[1]) if match else None


def _labels(root: Path, folders: Sequence[str], damage: Damage) -> dict[int, int]:
    """Class by number, from the dataset.json of each folder; they must not contradict."""
    found: dict[int, int] = {}
    for folder in folders:
        path = root / folder / LABELS
        for name, label in _listed(path) if path.exists() else ():
            number = _number(name)
            where = f"{folder}/{LABELS}"
            if number is None:
                damage.append((where, f"names {name}, which has no number"))
            elif found.setdefault(number, label) != label:
                damage.append((where, f"says {name} is {label}, elsewhere it is {found[number]}"))
    return found


def _listed(path: Path) -> list[tuple[str, int]]:
    try:
        labels = json.loads(path.read_text())["labels"] or []
        return [(str(name), int(label)) for name, label in labels]
    except (ValueError, KeyError, TypeError) as error:
        raise RegscaleError(
            path,
            "does not list files and classes",
            found=repr(error),
            fix='It holds {"labels": [["00000/img-mean-std-00000000.npy", 6], ...]}.',
        ) from error
