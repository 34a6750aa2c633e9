"""The folders that REG and REPA prepare, where they lie: pictures, posteriors, dataset.json.

    root/imagenet_256_vae/00000/img00000000.png       (REPA: images/)
    root/vae-sd/00000/img-mean-std-00000000.npy       fp32 (8, 32, 32): mean, then std, unscaled
    root/*/dataset.json                   {"labels": [["00000/img00000000.png", 6], ...]}

Picture and posterior are paired by the number in their names. No hash of the autoencoder is stored,
so `encoder` names the published model, as the label of `prepare convert` does: a run whose
`autoencoder.model` ends in that name takes the posteriors on trust and says so; another is refused.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from regscale.config import Invalid
from regscale.data._fields import Array
from regscale.data._images import Misfit, Unusable, decode
from regscale.data._pairs import ENCODER, MOMENTS, pairs, picture_folder, posterior
from regscale.errors import RegscaleError
from regscale.types import Batch, Moments

FIELDS = ("moments", "images", "labels")
TOLD = 3  # files that do not pair, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Where the folders are, and what of them is read."""

    root: str = "data/imagenet256-reg"  # holds the two folders
    images: str = ""  # the folder of the pictures; empty: imagenet_256_vae or images
    moments: str = MOMENTS
    fields: tuple[str, ...] = FIELDS  # [moments, labels] suffice without targets to compute
    image_size: int = 256  # pixels of a side of every picture
    encoder: str = ENCODER  # the published autoencoder that made the posteriors

    def __post_init__(self) -> None:
        if not self.fields or not set(self.fields) <= set(FIELDS):
            known = ", ".join(FIELDS)
            raise Invalid("fields", "names what there is", found=self.fields, fix=f"Of: {known}.")
        if self.image_size < 1:
            fix = "The published data: 256."
            raise Invalid("image_size", "is positive", found=self.image_size, fix=fix)


class Listed(NamedTuple):
    """All samples, in arrays: the loader's processes share their memory."""

    pictures: Array  # names below the root, as bytes
    moments: Array
    labels: Array


class RegFolder:
    """The samples in the order of their numbers."""

    def __init__(self, config: Config) -> None:
        self.config, self.root = config, Path(config.root)
        self.image_size = (config.image_size, config.image_size)

    @cached_property
    def listed(self) -> Listed:
        """Pictures, posteriors and labels; the folders are walked at first use."""
        images = picture_folder(self.root, self.config.images, self.config.moments)
        found, damage = pairs(self.root, images, self.config.moments)
        if damage or not found:
            told = "; ".join(f"{file} {what}" for file, what in damage[:TOLD])
            more = f" and {len(damage) - TOLD:,} more" if len(damage) > TOLD else ""
            raise RegscaleError(
                self.root,
                f"holds files in {images} and {self.config.moments} that do not pair by number",
                found=f"{told}{more}" or "no files at all",
                fix="Restore them; python -m regscale.prepare convert --policy skip lists all, "
                "and makes shards of the others.",
            )
        pictures, moments, labels = zip(*found, strict=True)
        return Listed(_packed(pictures), _packed(moments), np.array(labels, dtype=np.int64))

    @property
    def num_samples(self) -> int:
        return len(self.listed.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Of the names, labels and size; not of the content."""
        made = hashlib.blake2b(str(self.image_size).encode(), digest_size=16)
        for column in self.listed:
            made.update(f"{column.dtype}".encode() + column.tobytes())
        return made.hexdigest()

    @property
    def identities(self) -> Mapping[str, str]:
        """Of the encoder that the config says has made the posteriors."""
        held = "moments" in self.config.fields
        return {"moments": f"published {self.config.encoder}"} if held else {}

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        pictures, moments, labels = ([column[i] for i in indices] for column in self.listed)
        wanted = self.config.fields
        keys = [Path(os.fsdecode(name)).stem for name in pictures]
        return Batch(
            keys=tuple(keys),
            positions=torch.as_tensor(positions, dtype=torch.int64),
            images=torch.stack([self._image(n) for n in pictures]) if "images" in wanted else None,
            moments=self._moments(moments) if "moments" in wanted else None,
            labels=torch.as_tensor(np.array(labels)) if "labels" in wanted else None,
        )

    def _image(self, name: bytes) -> torch.Tensor:
        path = self.root / os.fsdecode(name)
        numbers = (0.0, 0.0, 0.0)  # of a random crop
        try:
            return decode(path.read_bytes(), self.config.image_size, crop="none", chance=numbers)
        except Misfit as error:
            raise RegscaleError(
                path,
                "has not the size that data.image_size tells, and its posterior is of all of it",
                found=error,
                fix="Set data.image_size to the size of the pictures, "
                "or prepare pictures and posteriors again.",
            ) from error
        except (OSError, Unusable) as error:
            raise _unreadable(path, "a picture", error) from error

    def _moments(self, names: Sequence[bytes]) -> Moments:
        """Of several samples: mean and std (B, C, H, W)."""
        arrays = [self._posterior(self.root / os.fsdecode(name)) for name in names]
        for name, values in zip(names, arrays, strict=True):
            if values.shape != arrays[0].shape:
                raise RegscaleError(
                    self.root / os.fsdecode(name),
                    f"has not the shape of {os.fsdecode(names[0])}, {arrays[0].shape}",
                    found=values.shape,
                    fix="Encode all pictures with one autoencoder at one size.",
                )
        stacked = torch.from_numpy(np.stack(arrays).astype(np.float32, copy=False))
        return Moments(*stacked.chunk(2, dim=1))

    def _posterior(self, path: Path) -> Array:
        try:
            return posterior(path.read_bytes())
        except (OSError, Unusable) as error:
            raise _unreadable(path, "a posterior", error) from error


def _packed(names: Sequence[str]) -> Array:
    return np.array([os.fsencode(name) for name in names])


def _unreadable(path: Path, what: str, error: Any) -> RegscaleError:
    return RegscaleError(
        path,
        f"cannot be read as {what}",
        found=error,
        fix="Restore the file; python -m regscale.prepare convert --policy skip makes shards of "
        "the others.",
    )


def build(config: Config) -> RegFolder:
    """The folders as a source; nothing is read yet."""
    return RegFolder(config)
