"""The folder of a run: config.yaml, metrics.jsonl, checkpoints/, samples/, marker.json."""

from pathlib import Path

from regscale.files import replacing, unwritable


def open_folder(folder: Path) -> None:
    """Make the folder of a run, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file whole."""
    with replacing(path) as file:
        file.write(text.encode())
