"""Moments in files on a local disk: memory that the system may write out there and use again."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

from regscale.errors import RegscaleError


def zeros_in(folder: Path) -> Callable[[Tensor], Tensor]:
    """What makes zeros like a flat tensor, in a file of this folder. The file has lost its name
    when its tensor is there, so nothing is left of it however the process ends."""

    def zeros(like: Tensor) -> Tensor:
        if not like.numel():
            return torch.zeros_like(like)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=folder, prefix="moment-") as file:
                # All of it at once: a disk that is full later would be the end of the process.
                os.posix_fallocate(file.fileno(), 0, like.nbytes)
                return torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype)
        except OSError as error:
            raise RegscaleError(
                folder,
                f"cannot take moments of {like.nbytes / 2**20:,.0f} MiB",
                found=error.strerror or str(error),
                fix="engine.offload_folder names a folder with room on a local disk.",
            ) from error

    return zeros
