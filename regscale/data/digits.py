"""The embedded data: scikit-learn's 1,797 scanned digits of 8x8 pixels, without a download.

A stratified two-to-one split by a fixed permutation keeps the generator honest: it and its
target network see `train` (1,198), and `judge` (599) is for whoever judges what they make.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits

from regscale.chance import permutation
from regscale.errors import RegscaleError
from regscale.types import Batch

SPLIT_SEED = 0  # part of the data's definition: the shipped target and judge rely on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which part of the digits to read."""

    split: Literal["train", "judge"] = "train"


class Digits:
    """One split as uint8 images (B, 3, 8, 8), grey repeated, in the order of scikit-learn."""

    image_size = (8, 8)

    def __init__(self, split: str) -> None:
        bundle = load_digits()
        grey = np.rint(bundle.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0 to 16 before
        self.split = split
        self.places = split_places(bundle.target)[split]
        self.images = torch.from_numpy(grey[self.places])[:, None].repeat(1, 3, 1, 1)
        self.labels = torch.from_numpy(bundle.target[self.places].astype(np.int64))
        self.num_samples = len(self.places)
        self.fingerprint = self._hash()

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The digits at `indices` of this split; a key is the place among all 1,797."""
        self._check(indices)
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Batch(
            keys=tuple(f"digit-{self.places[i]:05d}" for i in indices),
            positions=torch.as_tensor(positions, dtype=torch.int64),
            images=self.images[chosen],
            labels=self.labels[chosen],
        )

    def _check(self, indices: Sequence[int]) -> None:
        outside = [i for i in indices if not 0 <= i < self.num_samples]
        if outside:
            raise RegscaleError(
                f"digits, split {self.split}",
                f"holds the samples 0 to {self.num_samples - 1}",
                found=f"sample {outside[0]}",
                fix="Read indices of this split.",
            )

    def _hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.images.numpy(), self.labels.numpy(), self.places):
            digest.update(np.ascontiguousarray(array).tobytes())
        return f"digits-{self.split}-{digest.hexdigest()}"


def split_places(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Places of each split among all digits, ascending: of every class two thirds and one third."""
    train = []
    for label in range(10):
        places = np.flatnonzero(labels == label)
        order = permutation(
            len(places), seed=SPLIT_SEED, purpose="split of the digits", counter=label
        )
        train.append(places[order[: round(len(places) * 2 / 3)]])
    seen = np.sort(np.concatenate(train))
    unseen = np.setdiff1d(np.arange(len(labels)), seen)
    return {"train": seen.astype(np.int64), "judge": unseen.astype(np.int64)}


def build(config: Config, image_size: tuple[int, int] = (8, 8)) -> Digits:
    """The source of `config.split`; its images have one size."""
    if image_size != Digits.image_size:
        raise RegscaleError(
            "image_size",
            "is 8x8 for the digits",
            found="x".join(str(side) for side in image_size),
            fix="Leave the size out, or choose other data.",
        )
    return Digits(config.split)
