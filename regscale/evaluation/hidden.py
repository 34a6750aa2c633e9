"""Hidden states of a backbone by block and time, and what they and its tokens are worth.

B pictures, D model width, K tokens of a target, R their width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.data import NoiseShapes, Source, draw_noise
from regscale.encoding import Towers
from regscale.evaluation.cknna import cknna
from regscale.evaluation.probe import linear_probe
from regscale.path import Path
from regscale.schedule import Schedule
from regscale.types import Batch, Entangled, Times

BATCH = 64
SEED = 0


class Row(NamedTuple):
    """One block (from 1) at one time."""

    block: int
    time: float
    cknna: float  # with the target's mean feature
    accuracy: float | None  # of the linear probe; None without labels


class Samples(NamedTuple):
    """Some of a source, one after another."""

    source: Source
    places: range
    name: str  # of the source

    def __str__(self) -> str:
        return f"samples {self.places[0]:,} to {self.places[-1]:,} of {self.name}"


class Held(NamedTuple):
    """What is known of some samples: hidden states of each block, target features, labels."""

    states: Mapping[int, Tensor]  # (N, D): the mean over patches after each block
    features: Tensor  # (N, R): the mean over tokens
    labels: Tensor | None  # (N,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model whose states are looked at, with what surrounds it, and a target to compare with.

    All of them on one device.
    """

    device: torch.device
    model: Any
    blocks: nn.ModuleList
    towers: Towers
    path: Path
    shapes: NoiseShapes
    schedule: Schedule
    target: Any  # any frozen vision model

    def read(self, source: Source, places: range) -> Batch:
        """Samples with noise of their own, on the device."""
        noise = draw_noise(list(places), self.shapes, seed=SEED)
        return replace(source.read(places, places), noise=noise).to(self.device)

    @torch.no_grad()
    def forward(self, batch: Batch, time: float) -> None:
        """The samples noised to `time`, entangled tokens to theirs beside it, without condition."""
        example = self.towers.encode(batch)
        assert batch.noise is not None, "drawn when it was read"
        image, tokens = self.schedule.beside(time)
        ones = torch.ones(len(batch.keys), device=self.device)
        times = Times(image * ones, tuple(t * ones for t in tokens))
        mixed = Entangled(batch.noise.latents, batch.noise.tokens)
        noisy = self.path.interpolate(example.clean, mixed, times)
        null = self.towers.conditioner.null(example.condition)
        self.model(noisy.latents, noisy.tokens, times.image, times.tokens, null)


@torch.no_grad()
def states_of(subject: Subject, samples: Samples, *, time: float) -> Held:
    """Of some samples: the mean over patches, the last places of each block.

    What is held is on the CPU, where float64 is.
    """
    found: dict[int, list[Tensor]] = {i: [] for i in range(1, len(subject.blocks) + 1)}
    features, labels = [], []

    def kept(number: int) -> Callable[..., None]:
        return lambda _module, _inputs, out: found[number].append(_patches(out, subject.towers))

    hooks = [b.register_forward_hook(kept(i)) for i, b in enumerate(subject.blocks, 1)]
    try:
        for start in range(0, len(samples.places), BATCH):
            batch = subject.read(samples.source, samples.places[start : start + BATCH])
            subject.forward(batch, time)
            given = subject.target(batch.require("images", by="the target"))
            features.append(mean_feature(given.tokens).cpu())
            labels += [] if batch.labels is None else [batch.labels.cpu()]
    finally:
        for hook in hooks:
            hook.remove()
    joined = {i: torch.cat(parts) for i, parts in found.items()}
    return Held(joined, torch.cat(features), torch.cat(labels) if labels else None)


def table(seen: Held, unseen: Held, *, time: float, k: int = 10) -> list[Row]:
    """A row a block: CKNNA of the unseen samples, and the probe from the seen on them."""
    rows = []
    for block, states in unseen.states.items():
        accuracy = None
        if seen.labels is not None and unseen.labels is not None:
            accuracy = linear_probe(seen.states[block], seen.labels, states, unseen.labels)
        rows.append(Row(block, time, cknna(states, unseen.features, k=k), accuracy))
    return rows


def agreement(tokens: Tensor, image_tokens: Tensor) -> tuple[float, float]:
    """(mean cosine of generated tokens (B, K, R) with the target's of the generated images,
    the same of each with the next image's): the second is what chance gives."""
    own = F.cosine_similarity(tokens.double(), image_tokens.double(), dim=-1).mean()
    other = F.cosine_similarity(tokens.double(), image_tokens.double().roll(1, 0), dim=-1).mean()
    return float(own), float(other)


def nearest_class(tokens: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """(B,) the class whose mean feature (from (N, R), labels (N,)) is nearest to the mean of tokens
    (B, K, R) by cosine."""
    classes: Tensor = labels.unique()
    means = torch.stack([features[labels == label].double().mean(0) for label in classes])
    cosines = F.normalize(mean_feature(tokens).double(), dim=1) @ F.normalize(means, dim=1).T
    nearest: Tensor = classes[cosines.argmax(1)]
    return nearest


def report(rows: Sequence[Row]) -> str:
    """Blocks down, times across; CKNNA and accuracy."""
    times = sorted({row.time for row in rows})
    lines = ["block   " + "".join(f"{f't = {time:g}':>18}" for time in times)]
    for block in sorted({row.block for row in rows}):
        cells = [next(r for r in rows if (r.block, r.time) == (block, time)) for time in times]
        told = [
            f"{r.cknna:.3f} / " + ("-" if r.accuracy is None else f"{r.accuracy:.3f}")
            for r in cells
        ]
        lines.append(f"{block:<8}" + "".join(f"{text:>18}" for text in told))
    return "\n".join(lines)


def mean_feature(tokens: Tensor) -> Tensor:
    """(B, R): the mean over a target's tokens (B, K, R)."""
    return tokens.float().mean(1)


def _patches(out: Any, towers: Towers) -> Tensor:
    states = out[0] if isinstance(out, tuple) else out
    count = towers.grid[0] * towers.grid[1]
    mean: Tensor = states[:, -count:].float().mean(1)
    return mean.cpu()
