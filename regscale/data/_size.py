"""Sizes of pictures as they are written: 256, a square, or HEIGHTxWIDTH."""

import re

Size = tuple[int, int]  # height and width in pixels


def size_of(written: int | str) -> Size | None:
    """Of 256 or `512x768`; None for anything else."""
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", str(written).strip())
    if found is None:
        return None
    height, width = int(found[1]), int(found[2] or found[1])
    return (height, width) if height and width else None


def spelled(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
