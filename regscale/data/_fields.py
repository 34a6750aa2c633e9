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
from regscale.data import _captions, _shared
from regscale.data._images import Crop, Unusable, decode
from regscale.data._size import Size
from regscale.errors import RegscaleError
from regscale.types import Batch, Features, Moments

PICTURES = ("jpg", "jpeg", "png", "webp")
PATCHES = ".patches"
MAX_DIGITS = 18  # of a class number, so that it fits int64
Array = np.ndarray[Any, np.dtype[Any]]
Payloads = Mapping[str, memoryview]


def stored(name: str) -> bool:
    """Whether a field was computed from a picture as it was: a crop would not fit it."""
    return name not in ("images", "labels", "captions")


@lru_cache
def members(name: str) -> tuple[str, ...]:
    """The fields of a shard that may hold `name`."""
    plain = {"images": PICTURES, "labels": ("cls", "json"), "captions": ("txt", "json")}
    return plain.get(name, (f"{name}.npy",))


def _present(name: str, payloads: Payloads) -> str:
    """The first of the fields that may hold `name`; empty without one."""
    for member in members(name):
        if member in payloads:
            return member
    return ""


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
    size: int | Size
    crop: Crop
    flip: bool
    seed: int
    caption_weights: _captions.Weights

    def decode(self, key: str, payloads: Payloads, position: int) -> Sample:
        """The sample at one place of the run. A field that fails raises (its name, why)."""
        sample = Sample(key)
        flipped = self.flip and self._uniform("data/flip", position)[0] < 0.5
        for name in self.fields:
            member = _present(name, payloads)
            try:
                if not member:
                    raise Unusable("nothing")
                if name == "images":
                    sample.image = self._image(payloads[member], position, flipped)
                elif name == "labels":
                    sample.label = label(payloads)
                elif name == "captions":
                    sample.caption = self._caption(payloads, position)
                else:
                    sample.arrays[name] = _row(name, payloads[member], self.flip, flipped)
            except Unusable as error:
                raise Unusable(member or members(name)[0], str(error)) from error
        return sample

    def _image(self, payload: memoryview, position: int, flipped: bool) -> Tensor:
        numbers = self._uniform("data/crop", position) if self.crop == "random" else (0.0,) * 3
        image = decode(payload, self.size, crop=self.crop, chance=numbers)
        return image.flip(-1) if flipped else image

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
    begin = _npy_begin(payload)
    shape, dtype = _npy_header(bytes(payload[:begin]), len(payload))
    return np.ndarray(shape, dtype, payload, begin)


def _row(name: str, payload: memoryview, both: bool, second: bool) -> Array:
    """What a field holds of the picture or of its mirror image; `both` must be there for a flip."""
    begin = _npy_begin(payload)
    shape, dtype, size = _npy_rows(name, bytes(payload[:begin]), len(payload), both)
    return np.ndarray(shape, dtype, payload, begin + size * second)


@lru_cache(maxsize=256)
def _npy_rows(
    name: str, head: bytes, length: int, both: bool
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, type, bytes) of each row of a field."""
    found, dtype = _npy_header(head, length)
    ndim = 3 if name == "moments" else 2
    shape = (1, *found) if len(found) == 1 and ndim == 2 else found  # (1, R)
    rows = shape if len(shape) == ndim + 1 else (1, *shape)
    if len(rows) != ndim + 1 or not 1 <= rows[0] <= 2 or (ndim == 3 and rows[1] % 2):
        raise Unusable(f"an array of shape {found}")
    if both and rows[0] == 1:
        raise Unusable("one row; data.flip needs a second for the flipped picture")
    return rows[1:], dtype, dtype.itemsize * prod(rows[1:])


def _npy_begin(payload: memoryview) -> int:
    """Where the values of an npy file begin, if it is one."""
    if payload[6:7].tobytes() == b"\x01":
        return 10 + int.from_bytes(payload[8:10], "little")
    return 12 + int.from_bytes(payload[8:12], "little")


@lru_cache(maxsize=256)
def _npy_header(head: bytes, length: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, type) that the head of an npy file of `length` bytes states."""
    file = BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except Exception as error:  # Python's own parser reads it, and raises what it likes
        raise Unusable("no array that NumPy wrote") from error
    if dtype.hasobject:
        raise Unusable("an array of pickled objects, which is never opened")
    if dtype.kind != "f" or fortran:
        raise Unusable(f"an array of {dtype}" + (" in Fortran order" if fortran else ""))
    if min(shape, default=1) < 1:
        raise Unusable(f"an array of shape {shape}")
    if length - len(head) != dtype.itemsize * prod(shape):
        raise Unusable(f"{length - len(head):,} bytes of an array {shape} of {dtype}")
    return shape, dtype


def label(payloads: Payloads) -> int:
    """The class number in `cls`, or in `json` under label or cls."""
    if "cls" in payloads:
        text = bytes(payloads["cls"]).strip()
        if not text.isdigit() or len(text) > MAX_DIGITS:
            raise Unusable(f"{text[:20]!r}, no class number")
        return int(text)
    about = json_object(payloads["json"])
    for name in ("label", "cls"):
        if isinstance(number := about.get(name), int) and abs(number) < 10**MAX_DIGITS:
            return int(number)
    has = ", ".join(map(repr, sorted(about)))
    raise Unusable(f"json with {has}, no 'label' that is a class number")


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
        images=_stack_images(present["image"]) if "image" in present else None,
        moments=None if moments is None else Moments(*moments.chunk(2, dim=1)),
        features=_features(arrays) or None,
        labels=torch.tensor(present["label"], dtype=torch.int64) if "label" in present else None,
        captions=tuple(present["caption"]) if "caption" in present else None,
    )


def _features(arrays: Mapping[str, Tensor]) -> dict[str, Features]:
    names = [name for name in arrays if not name.endswith(PATCHES)]
    return {name: Features(arrays[name], arrays.get(name + PATCHES)) for name in names}


def _stack_images(images: Sequence[Tensor]) -> Tensor:
    """(B, 3, S, S), channels last in memory, as pictures are decoded."""
    rows = [image.permute(1, 2, 0) for image in images]
    whole = _shared.empty((len(rows), *rows[0].shape), torch.uint8)
    return torch.stack(rows, out=whole).permute(0, 3, 1, 2)


def _stack(samples: Sequence[Sample], name: str) -> Tensor:
    """One field of all samples: (B, ...), fp16 where all are halves, else fp32."""
    first = samples[0].arrays[name]
    for sample in samples:
        if sample.arrays[name].shape != first.shape:
            raise RegscaleError(
                f"samples {samples[0].key} and {sample.key}",
                f"have '{name}.npy' of different shapes",
                found=f"{first.shape} and {sample.arrays[name].shape}",
                fix="Encode all shards with one model at one size.",
            )
    are_halves = all(sample.arrays[name].dtype == np.float16 for sample in samples)
    dtype = torch.float16 if are_halves else torch.float32
    whole = _shared.empty((len(samples), *first.shape), dtype)
    rows = whole.numpy()
    for place, sample in enumerate(samples):
        rows[place] = sample.arrays[name]
    return whole


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
