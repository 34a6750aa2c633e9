"""Ways to read the same samples into batches: regscale's loader, what published code does, and
webdataset in the order of its shards."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from regscale.data import NoiseShapes, batches, shards

Way = Callable[[], Iterator[Any]]  # batches, more than are timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What all ways have in common."""

    batch_size: int = 256
    num_batches: int = 40  # of a turn, with those that are not timed
    num_workers: int = 0


class Published(Dataset[tuple[Tensor, ...]]):
    """REG's and REPA's dataset, restated: one `np.load` a sample, and PIL for a picture."""

    def __init__(self, root: Path, *, num_samples: int, images: bool) -> None:
        self.root, self.images = str(root), images
        labels = json.loads((root / "vae-sd" / "dataset.json").read_text())["labels"]
        self.names, self.labels = zip(*labels[:num_samples], strict=True)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        name = self.names[index]
        features = torch.from_numpy(np.load(os.path.join(self.root, "vae-sd", name)))
        label = torch.tensor(self.labels[index])
        if not self.images:
            return features, label
        name = name.replace("-mean-std-", "").replace(".npy", ".png")
        with open(os.path.join(self.root, "images", name), "rb") as file:
            image = np.array(Image.open(file))
        image = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)
        return torch.from_numpy(image), features, label


def published(root: Path, reading: Reading, *, num_samples: int, images: bool) -> Way:
    """In random order, with PyTorch's own collation; epochs without a pause between them."""
    data = Published(root, num_samples=num_samples, images=images)
    sampler = RandomSampler(data, num_samples=reading.batch_size * reading.num_batches)
    loader = DataLoader(data, reading.batch_size, sampler=sampler, num_workers=reading.num_workers)
    return lambda: iter(loader)


def sequential(folder: Path, reading: Reading) -> Way:
    """webdataset's own pipeline over the shards in their order: decoded, tuples, batched."""
    urls = sorted(map(str, folder.glob("*.tar")))
    pipeline = (
        webdataset.WebDataset(urls, shardshuffle=False)
        .repeat()
        .decode()
        .to_tuple("moments.npy", "cls")
        .batched(reading.batch_size)
    )
    loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=reading.num_workers)
    return lambda: iter(loader)


def regscale(
    folder: Path, reading: Reading, *, images: bool, size: int, noise: NoiseShapes | None = None
) -> Way:
    """The loader of a run in its permutation of all samples, checksums verified."""
    fields = ("images", "moments", "labels") if images else ("moments", "labels")
    config = shards.Config(urls=(str(folder),), fields=fields, image_size=size, mode="positional")
    source = shards.build(config)
    return lambda: batches(
        source,
        noise,
        seed=0,
        start=0,
        batch_size=reading.batch_size,
        num_workers=reading.num_workers,
    )


def rate(way: Way, reading: Reading) -> float:
    """Samples a second in the steady state: the workers have begun before the clock does."""
    made = way()
    for _ in range(1 + 2 * reading.num_workers):
        next(made)
    count = reading.num_batches - 1 - 4 * reading.num_workers  # the rest is read ahead at the end
    start = perf_counter()
    for _ in range(count):
        next(made)
    seconds = perf_counter() - start
    del made  # ends the workers
    return count * reading.batch_size / seconds
