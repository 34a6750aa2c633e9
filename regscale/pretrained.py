"""Frozen models that other libraries saved: how they are read, and a hash that tells them apart."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from regscale.errors import RegscaleError

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load(source: Any, name: str, *, kind: str, **options: Any) -> Any:
    """`source.from_pretrained(name)`, refused unless every weight was found."""
    with reading(name, kind=kind):
        model, report = source.from_pretrained(place(name), output_loading_info=True, **options)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise unreadable(name, f"weights without {missing}", kind=kind)
    return model


def identity(kind: str, recipe: Sequence[str], tensors: Iterable[Tensor]) -> str:
    """A hash of weights and of what is done around them, whatever a library names the tensors."""
    text = "\n".join([*recipe, *sorted(_digest(tensor) for tensor in tensors)])
    return f"{kind}-{xxhash.xxh3_128_hexdigest(text.encode())}"


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    bits = xxhash.xxh3_128_hexdigest(data.reshape(-1).view(torch.uint8).numpy().data)
    return f"{tuple(data.shape)} {data.dtype} {bits}"


def place(name: str) -> str:
    """A hub id as it is, and a folder with `~` expanded."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


@contextmanager
def reading(name: str, *, kind: str) -> Iterator[None]:
    """Turns what libraries raise for a model they cannot read into a sentence for the user."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable(name, error, kind=kind) from error


def unreadable(name: str, found: object, *, kind: str) -> RegscaleError:
    """The error to raise for a model that is missing, damaged or incomplete."""
    return RegscaleError(
        f"{kind}: model {name}",
        "cannot be loaded",
        found=str(found).splitlines()[0].rstrip("."),
        fix="Give a hub id and a connection, or a folder that save_pretrained wrote.",
    )


@lru_cache(maxsize=64)
def channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number for each channel as (C, 1, 1), made once: each time would wait for the device."""
    return torch.tensor(values, device=device).reshape(-1, 1, 1)
