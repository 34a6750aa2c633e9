"""The folder of a run: config.yaml, metrics.jsonl, checkpoints/, samples/, marker.json."""

import os
from pathlib import Path

from regscale.errors import RegscaleError


def open_folder(folder: Path) -> None:
    """Make the folder of a run, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file whole: a reader sees the old text or the new one."""
    try:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RegscaleError:
    return RegscaleError(
        path,
        "cannot be written",
        found=error.strerror or error,
        fix="Choose another folder with runs=FOLDER.",
    )
