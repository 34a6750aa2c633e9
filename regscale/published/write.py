"""Published files, written whole or not at all."""

import argparse
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from regscale.errors import RegscaleError
from regscale.published.plain import plain
from regscale.published.read import Published, State


def write_checkpoint(path: Path, content: Published) -> None:
    """{model, ema, opt, args, steps} for torch.load, as the published trainers save it."""
    values = {
        "model": OrderedDict(content.model),
        "ema": OrderedDict(content.ema),
        "opt": content.opt,
        "args": argparse.Namespace(**(content.args or {})),
        "steps": content.steps,
    }
    _write(path, lambda temporary: torch.save(values, temporary))


def write_weights(path: Path, content: Published, *, which: str) -> None:
    """One set of weights as safetensors; its metadata says which, and holds args and steps."""
    state: State = getattr(content, which)
    metadata = {
        "format": "pt",
        "weights": which,
        "args": json.dumps(plain(content.args, "args")),
        "steps": json.dumps(content.steps),
    }
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    _write(path, lambda temporary: save_file(tensors, temporary, metadata))


def _write(path: Path, save: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RegscaleError(
            path,
            "cannot be written",
            found=str(error).splitlines()[0],
            fix="Choose another place with --to.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
