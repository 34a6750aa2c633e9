"""Fields of a sample to what a batch holds: pictures, labels, captions, moments and features.

C latent channels, K tokens of a target, R their width, N patches. `moments.npy` is (2C, H, W), mean
then std; `<target>.npy` is (K, R) and `<target>.patches.npy` (N, R). With a second copy for the
horizontal flip, all three have a leading 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regscale import chance
from regscale.data import _captions
from regscale.data._images import Crop, Unusable, decode
from regscale.errors import RegscaleError
from regscale.types import Batch, Features, Moments

PICTURES = ("jpg", "jpeg", "png", "webp")
PATCHES = ".patches"
Array = np.ndarray[Any, np.dtype[Any]]
Payloads = Mapping[str, memoryview]


def stored(name: str) -> bool:
    """Whether a field was computed from a picture as it was: a crop would not fit it."""
    return name not in ("images", "labels", "captions")


def members(name: str) -> tuple[str, ...]:
    """The fields of a shard that may hold `name`."""
    plain = {"images": PICTURES, "labels": ("cls", "json"), "captions": ("txt", "json")}
    return plain.get(name, (f"{name}.npy",))


@dataclass(slots=True)
class Sample:
    """One decoded sample; absent is None."""

    key: str
    image: Tensor | None = None
    label: int | None = None
    caption: str | None = None
    arrays: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Decodes the fields that a run wants; all chance is keyed by the place in the run."""

    fields: tuple[str, ...]
    size: int
    crop: Crop
    flip: bool
    seed: int
    caption_weights: _captions.Weights

    def decode(self, key: str, payloads: Payloads, position: int) -> Sample:
        """The sample at one place of the run. A field that fails raises (its name, why)."""
        sample = Sample(key)
        flipped = self.flip and self._uniform("data/flip", position)[0] < 0.5
        for name in self.fields:
            there = [member for member in members(name) if member in payloads]
            try:
                if not there:
                    raise Unusable("nothing")
                self._fill(sample, name, {m: payloads[m] for m in there}, position, flipped)
            except Unusable as error:
                raise Unusable(there[0] if there else members(name)[0], str(error)) from error
        return sample

    def _fill(
        self, sample: Sample, name: str, payloads: Payloads, position: int, flipped: bool
    ) -> None:
        first = next(iter(payloads.values()))
        if name == "images":
            numbers = self._uniform("data/crop", position) if self.crop == "random" else (0.0,) * 3
            image = decode(first, self.size, crop=self.crop, chance=numbers)
            sample.image = image.flip(-1) if flipped else image
        elif name == "labels":
            sample.label = label(payloads)
        elif name == "captions":
            sample.caption = self._caption(payloads, position)
        else:
            sample.arrays[name] = self._row(name, array(first), flipped)

    def _row(self, name: str, values: Array, flipped: bool) -> Array:
        ndim = 3 if name == "moments" else 2
        if values.ndim == 1 and name != "moments":
            values = values[None]  # (1, R)
        rows = values if values.ndim == ndim + 1 else values[None]
        if rows.ndim != ndim + 1 or not 1 <= len(rows) <= 2 or (ndim == 3 and rows.shape[1] % 2):
            raise Unusable(f"an array of shape {values.shape}")
        if self.flip and len(rows) == 1:
            raise Unusable("one row; data.flip needs a second for the flipped picture")
        chosen: Array = rows[int(flipped)]
        return chosen

    def _caption(self, payloads: Payloads, position: int) -> str:
        about = json_object(payloads["json"]) if "json" in payloads else {}
        return _captions.caption(
            about,
            payloads.get("txt"),
            self.caption_weights,
            draw=lambda: self._uniform("data/caption", position)[0],
        )

    def _uniform(self, purpose: str, position: int) -> tuple[float, float, float]:
        drawn = chance.uniform((3,), seed=self.seed, purpose=purpose, counter=position)
        first, second, third = drawn.tolist()
        return first, second, third


def array(payload: memoryview) -> Array:
    """The floats of an npy file, without a copy; pickled objects are refused."""
    head = bytes(payload[:12])
    head = head[:10] if head[6:7] == b"\x01" else head
    length = int.from_bytes(head[8:], "little") if head[:6] == b"\x93NUMPY" else 0
    shape, dtype = _npy_header(bytes(payload[: len(head) + length]))
    body = payload[len(head) + length :]
    if len(body) != dtype.itemsize * prod(shape):
        raise Unusable(f"{len(body):,} bytes of an array {shape} of {dtype}")
    return np.frombuffer(body, dtype=dtype).reshape(shape)


@lru_cache(maxsize=256)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, type) that the head of an npy file states."""
    file = BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except (ValueError, SyntaxError, TypeError) as error:
        raise Unusable("no array that NumPy wrote") from error
    if dtype.hasobject:
        raise Unusable("an array of pickled objects, which is never opened")
    if dtype.kind != "f" or fortran:
        raise Unusable(f"an array of {dtype}" + (" in Fortran order" if fortran else ""))
    return shape, dtype


def label(payloads: Payloads) -> int:
    """The class number in `cls`, or in `json` under label or cls."""
    if "cls" in payloads:
        text = bytes(payloads["cls"])
        if not text.strip().isdigit():
            raise Unusable(f"{text[:20]!r}, no class number")
        return int(text)
    about = json_object(payloads["json"])
    for name in ("label", "cls"):
        if isinstance(about.get(name), int):
            return int(about[name])
    raise Unusable(f"json with {', '.join(map(repr, sorted(about)))}, no 'label'")


def json_object(payload: memoryview) -> dict[str, Any]:
    """What a json field says."""
    try:
        about = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise Unusable("no json") from error
    if not isinstance(about, dict):
        raise Unusable("json that is no object")
    return about


def collate(samples: Sequence[Sample], positions: Sequence[int], fields: Iterable[str]) -> Batch:
    """The samples as one batch."""
    arrays = {name: _stack(samples, name) for name in fields if stored(name)}
    moments = arrays.pop("moments", None)
    wanted = {name: [getattr(s, name) for s in samples] for name in ("image", "label", "caption")}
    present = {name: values for name, values in wanted.items() if values[0] is not None}
    return Batch(
        keys=tuple(sample.key for sample in samples),
        positions=torch.as_tensor(positions, dtype=torch.int64),
        images=torch.stack(present["image"]) if "image" in present else None,
        moments=None if moments is None else Moments(*moments.chunk(2, dim=1)),
        features=_features(arrays) or None,
        labels=torch.tensor(present["label"], dtype=torch.int64) if "label" in present else None,
        captions=tuple(present["caption"]) if "caption" in present else None,
    )


def _features(arrays: Mapping[str, Tensor]) -> dict[str, Features]:
    names = [name for name in arrays if not name.endswith(PATCHES)]
    return {name: Features(arrays[name], arrays.get(name + PATCHES)) for name in names}


def _stack(samples: Sequence[Sample], name: str) -> Tensor:
    """One field of all samples, fp32: (B, ...)."""
    first = samples[0].arrays[name]
    for sample in samples:
        if sample.arrays[name].shape != first.shape:
            raise RegscaleError(
                f"samples {samples[0].key} and {sample.key}",
                f"have '{name}.npy' of different shapes",
                found=f"{first.shape} and {sample.arrays[name].shape}",
                fix="Encode all shards with one model at one size.",
            )
    whole = np.empty((len(samples), *first.shape), dtype=np.float32)
    for place, sample in enumerate(samples):
        whole[place] = sample.arrays[name]
    return torch.from_numpy(whole)


def refuse_stale(
    identities: Mapping[str, str], current: Mapping[str, str], *, where: Callable[[], str] | str
) -> None:
    """Refuse stored fields of another encoder than the run's: `current` has identities by field."""
    for name, identity in current.items():
        before = identities.get(name)
        if before != identity:
            raise RegscaleError(
                where if isinstance(where, str) else where(),
                f"holds '{name}' of another encoder than this run's",
                found=f"stored: {before or 'no identity'}; current: {identity}",
                fix="Encode the data with this run's encoder, or leave the field out.",
            )
