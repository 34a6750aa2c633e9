"""Batches of a run from any place in it: workers have no state, the position is one integer."""

from __future__ import annotations

import atexit
import gc
import signal
import weakref
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from regscale import chance
from regscale.data import _shared
from regscale.data._order import order_of
from regscale.data._size import Size
from regscale.data._source import Source
from regscale.errors import RegscaleError
from regscale.types import Batch, Noise

UNREAD = 2  # batches that a worker makes ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseShapes:
    """Of one sample: the latents (C, H, W) and each entangled target's tokens (K, R).

    `own_times` are the places of the targets whose times are drawn apart from the image's.
    `buckets` are the latents of batches that tell the size of their pictures.
    """

    latents: tuple[int, int, int]
    tokens: tuple[tuple[int, int], ...]
    own_times: tuple[int, ...] = ()
    buckets: Mapping[Size, tuple[int, int, int]] = field(default_factory=dict)

    def of(self, size: Size | None) -> NoiseShapes:
        """Those of a batch of pictures of this size."""
        return self if size is None else replace(self, latents=self.buckets[size])


def draw_noise(counters: list[int], shapes: NoiseShapes, *, seed: int) -> Noise:
    """All chance of these samples, keyed by their counters."""

    def normals(shape: tuple[int, ...], purpose: str) -> torch.Tensor:
        return chance.normals(shape, seed=seed, purpose=purpose, counters=counters)

    def uniforms(purpose: str) -> torch.Tensor:
        return chance.uniforms(seed=seed, purpose=purpose, counters=counters)

    return Noise(
        times=uniforms("train/times"),
        keep=uniforms("train/keep"),
        posterior=normals(shapes.latents, "train/posterior"),
        latents=normals(shapes.latents, "train/latents"),
        tokens=tuple(normals(s, f"train/tokens{i}") for i, s in enumerate(shapes.tokens)),
        token_times=tuple(uniforms(f"train/times/{i}") for i in shapes.own_times),
    )


class _Samples(Dataset[Batch | RegscaleError]):
    """Indexed by a list of counters: the batch of these places of the run."""

    def __init__(
        self, source: Source, shapes: NoiseShapes | None, seed: int, num_classes: int | None
    ) -> None:
        self.source, self.shapes, self.seed = source, shapes, seed
        self.num_classes = num_classes

    def __getitem__(self, counters: list[int]) -> Batch | RegscaleError:
        _shared.turn()
        try:
            indices = order_of(self.source, counters, seed=self.seed)
            batch = self.source.read(indices, counters)
            check_labels(batch, self.num_classes)
        except RegscaleError as error:
            return error  # as a value: an exception in a worker arrives as plain text
        if self.shapes is None:
            return _shared.placed(batch)
        shapes = self.shapes.of(batch.image_size)
        noise = draw_noise(counters, shapes, seed=self.seed)
        return _shared.placed(replace(batch, noise=noise))


class _Places(Sampler[list[int]]):
    """The counters of one rank's part of each batch, without end."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size = start, batch_size
        self.part = batch_size // world_size
        self.offset = rank * self.part

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            first = position + self.offset
            yield list(range(first, first + self.part))
            position += self.batch_size


def batches(
    source: Source,
    shapes: NoiseShapes | None,
    *,
    seed: int,
    start: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_classes: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """This rank's part of each batch of the run, from sample counter `start` on; without `shapes`
    no noise is drawn.

    Close the generator when done: that ends its workers. The end of the program does it too.
    """
    assert batch_size % world_size == 0, "checked by the recipe"
    assert source.num_samples > 0, "a source without samples raises; looked at before workers fork"
    loader = DataLoader(
        _Samples(source, shapes, seed, num_classes),
        sampler=_Places(start, batch_size, rank, world_size),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=UNREAD if num_workers else None,
        worker_init_fn=_begin,
    )
    made = _unwrapped(iter(loader))
    if num_workers:
        atexit.register(_close, weakref.ref(made))
    return made


def _close(made: weakref.ref[Generator[Batch, None, None]]) -> None:
    """End workers that were forgotten: they take no signal, and the program would wait for them."""
    generator = made()
    if generator is not None:
        generator.close()


def _begin(worker: int) -> None:  # noqa: ARG001
    """A signal to the process group means that the parent saves: it needs its workers for that.

    Batches go round in memory for one more than may be unread. What the parent made is left out of
    garbage collection, which would write to all of its pages and so copy them.
    """
    gc.freeze()
    _shared.begin(UNREAD + 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _unwrapped(loaded: Iterator[Batch | RegscaleError]) -> Generator[Batch, None, None]:
    taken = _shared.Taken()
    try:
        while True:
            yield taken(_given(next(loaded)))  # without a name, which would keep one batch more
    finally:
        del loaded  # ends the workers, which take no signal


def _given(batch: Batch | RegscaleError) -> Batch:
    if isinstance(batch, RegscaleError):
        raise batch
    return batch


def check_labels(batch: Batch, num_classes: int | None) -> None:
    """Refuse a label beyond the condition's classes, which would be trained as "no class"."""
    if num_classes is None or batch.labels is None:
        return
    for key, label in zip(batch.keys, batch.labels.tolist(), strict=True):
        if not 0 <= label < num_classes:
            raise RegscaleError(
                f"sample {key}",
                f"has a label that is not between 0 and {num_classes - 1}",
                found=label,
                fix="Set conditioning.num_classes to the number of classes of the data.",
            )
