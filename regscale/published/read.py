"""Reading files of strangers: tensors, plain values and `argparse.Namespace`, nothing else.

No line of a file is ever run: a pickle that asks for anything else is refused.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regscale.errors import RegscaleError
from regscale.published.plain import revived

State = dict[str, Tensor]
AGAIN = "Download it again and compare its size with the publisher's."
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file's content. Where it holds one set of weights, `model` and `ema` are both this set."""

    model: State
    ema: State
    opt: dict[str, Any] | None = None
    args: dict[str, Any] | None = None
    steps: int | None = None


def read(path: Path) -> Published:
    """A training checkpoint {model, ema, opt, args, steps}, a part of one, or bare weights."""
    if not path.is_file():
        raise RegscaleError(
            path, "is not a file", found="nothing readable", fix="Give the path of a checkpoint."
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load(path)
    if not isinstance(content, dict):
        raise _no_checkpoint(path, type(content).__name__)
    if not any(isinstance(content.get(key), dict) for key in ("model", "ema")):
        state = _state(content, "weights", path)
        return Published(model=state, ema=state)
    model = content["model"] if content.get("model") is not None else content.get("ema")
    ema = content["ema"] if content.get("ema") is not None else model
    return Published(
        model=_state(model, "model", path),
        ema=_state(ema, "ema", path),
        opt=_of_type(content, "opt", dict, path),
        args=_arguments(content, path),
        steps=_steps(content, path),
    )


def _read_safetensors(path: Path) -> Published:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        args = revived(json.loads(metadata.get("args", "null")))
        steps = json.loads(metadata.get("steps", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise RegscaleError(
            path, "cannot be read as safetensors", found=_first_line(error), fix=AGAIN
        ) from error
    said = {"args": args, "steps": steps}
    state = _state(tensors, "weights", path)
    return Published(
        model=state,
        ema=state,
        args=_of_type(said, "args", dict, path),
        steps=_of_type(said, "steps", int, path),
    )


def _load(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            _verify(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except RegscaleError:
        raise
    except Exception as error:  # the bytes of a stranger can make an unpickler raise anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise RegscaleError(
                path,
                "cannot be read as a checkpoint of torch.save: it is cut short, damaged or of "
                "another kind",
                found=f"{path.stat().st_size} bytes; {_first_line(error)}",
                fix=AGAIN,
            ) from error
        raise RegscaleError(
            path,
            "is refused, and nothing of it was run: a checkpoint holds tensors, plain values and "
            "argparse.Namespace, while this file would run code of its choice",
            found=f"a request for {asked[1]}",
            fix="If you trust its author, ask for the weights alone, as safetensors.",
        ) from error


def _verify(path: Path) -> None:
    """Compare every record with its checksum, which torch.load does not do."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise RegscaleError(
            path, "is damaged: a record differs from its checksum", found=damaged, fix=AGAIN
        )


def _state(values: Any, name: str, path: Path) -> State:
    """Weights by name, fp32, without the prefixes that wrappers leave."""
    good = isinstance(values, Mapping) and values
    if not good or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.is_floating_point()
        for key, value in values.items()
    ):
        odd = [f"{k}: {type(v).__name__}" for k, v in values.items()] if good else []
        raise _no_checkpoint(path, f"{name} with {', '.join(odd[:6]) or 'no tensors'}")
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in values):
            values = {key.removeprefix(prefix): value for key, value in values.items()}
    broken = [key for key, value in values.items() if not value.isfinite().all()]
    if broken:
        raise RegscaleError(
            f"{path}: {name}",
            "holds numbers that are not finite: such weights draw nothing",
            found=", ".join(broken[:6]),
            fix="Take an earlier checkpoint of that training.",
        )
    return {key: value.detach().float() for key, value in values.items()}


def _steps(content: dict[str, Any], path: Path) -> int | None:
    steps: int | None = _of_type(content, "steps", int, path)
    if steps is not None and steps < 0:
        raise RegscaleError(
            f"{path}: steps", "is a number of updates", found=steps, fix="Take an intact file."
        )
    return steps


def _arguments(content: dict[str, Any], path: Path) -> dict[str, Any] | None:
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    named: dict[str, Any] | None = _of_type(content, "args", dict, path)
    return named


def _of_type(content: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        raise RegscaleError(
            f"{path}: {key}",
            f"is of type {kind.__name__} in a published checkpoint",
            found=type(value).__name__,
            fix="Give a checkpoint of REG, REPA or SiT.",
        )
    return value


def _no_checkpoint(path: Path, found: str) -> RegscaleError:
    return RegscaleError(
        path,
        "is no published checkpoint: {model, ema, opt, args, steps} or weights by name",
        found=found,
        fix="Give a checkpoint of REG, REPA or SiT.",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} {lines[0] if lines else ''}".strip().rstrip(".")
