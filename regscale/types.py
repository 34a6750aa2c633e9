"""What travels between the parts.

B batch, C H W latents, SH SW image sides, N patch tokens, K tokens of one target, R their width,
L E text tokens and width, D model width. Time: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from regscale.errors import RegscaleError


class Moments(NamedTuple):
    """The posterior of an autoencoder: mean and standard deviation (not log-variance)."""

    mean: Tensor  # (B, C, H, W)
    std: Tensor  # (B, C, H, W)


class Features(NamedTuple):
    """What a target makes of a batch of images."""

    tokens: Tensor  # (B, K, R)
    patches: Tensor | None  # (B, N, R)


class Times(NamedTuple):
    """One number per sample for each leaf of an `Entangled`: times, or coefficients at them."""

    image: Tensor  # (B,)
    tokens: tuple[Tensor, ...]  # of (B,)

    def map(self, function: Callable[[Tensor], Tensor]) -> Times:
        return Times(function(self.image), tuple(function(t) for t in self.tokens))


class LeafFloats(NamedTuple):
    """One Python number for each leaf of an `Entangled`: a solver's times, or coefficients."""

    image: float
    tokens: tuple[float, ...]

    def map(self, function: Callable[[float], float]) -> LeafFloats:
        return LeafFloats(function(self.image), tuple(function(t) for t in self.tokens))

    def zip(self, other: LeafFloats, function: Callable[[float, float], float]) -> LeafFloats:
        pairs = zip(self.tokens, other.tokens, strict=True)
        return LeafFloats(
            function(self.image, other.image), tuple(function(a, b) for a, b in pairs)
        )

    @property
    def leaves(self) -> tuple[float, ...]:
        return (self.image, *self.tokens)


@dataclass(frozen=True, slots=True)
class Entangled:
    """Latents and the tokens that move through time with them: one vector.

    Plain SiT has no tokens; the paper's REG has one target with K = 1.
    """

    latents: Tensor  # (B, C, H, W)
    tokens: tuple[Tensor, ...] = ()  # of (B, K, R)

    def map(self, function: Callable[[Tensor], Tensor]) -> Entangled:
        return Entangled(function(self.latents), tuple(function(t) for t in self.tokens))

    def zip(self, other: Entangled, function: Callable[[Tensor, Tensor], Tensor]) -> Entangled:
        pairs = zip(self.tokens, other.tokens, strict=True)
        return Entangled(
            function(self.latents, other.latents), tuple(function(a, b) for a, b in pairs)
        )

    def __add__(self, other: Entangled) -> Entangled:
        return self.zip(other, torch.add)

    def __sub__(self, other: Entangled) -> Entangled:
        return self.zip(other, torch.sub)

    def __mul__(self, scale: float | Times | LeafFloats) -> Entangled:
        """Scale all leaves by one number, or each leaf by its own: a number, or (B,)."""
        if isinstance(scale, Times | LeafFloats):
            scales: tuple[Tensor | float, ...] = scale.tokens
            scaled = zip(self.tokens, scales, strict=True)
            return Entangled(
                _times(self.latents, scale.image), tuple(_times(x, s) for x, s in scaled)
            )
        return self.map(lambda leaf: leaf * scale)

    __rmul__ = __mul__

    def to(self, *args: Any, **kwargs: Any) -> Entangled:
        return self.map(lambda leaf: leaf.to(*args, **kwargs))

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.latents, *self.tokens)


def _times(leaf: Tensor, scale: Tensor | float) -> Tensor:
    if not isinstance(scale, Tensor):
        return leaf * scale
    return leaf * scale.reshape(-1, *[1] * (leaf.ndim - 1))


class Labels(NamedTuple):
    """A class condition."""

    labels: Tensor  # (B,) int64


class Text(NamedTuple):
    """A text condition from a frozen encoder, padded on the right."""

    tokens: Tensor  # (B, L, E)
    lengths: Tensor  # (B,) int64, 1 to L
    pooled: Tensor  # (B, P)


class Several(NamedTuple):
    """Conditions that hold together."""

    parts: tuple[Any, ...]


class Embedded(NamedTuple):
    """What the trainable embedder of a condition gives the backbone."""

    pooled: Tensor  # (B, D)
    tokens: Tensor | None = None  # (B, L, D)
    lengths: Tensor | None = None  # (B,)


class Noise(NamedTuple):
    """All chance of one training batch, drawn in the loader by sample counter."""

    times: Tensor  # (B,) uniform
    keep: Tensor  # (B,) uniform: compared with the dropout of the condition
    posterior: Tensor  # (B, C, H, W) normal
    latents: Tensor  # (B, C, H, W) normal
    tokens: tuple[Tensor, ...]  # of (B, K, R) normal
    token_times: tuple[Tensor, ...] = ()  # of (B,) uniform, one per target with times of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the loader hands over: what a shard held, and the chance of these samples.

    `positions` are sample counters: the places of the samples in the run. `image_size` is told by
    sources whose batches differ in it.
    """

    keys: tuple[str, ...]
    positions: Tensor  # (B,) int64
    images: Tensor | None = None  # (B, 3, SH, SW) uint8
    moments: Moments | None = None
    features: dict[str, Features] | None = None
    labels: Tensor | None = None  # (B,) int64
    captions: tuple[str, ...] | None = None
    noise: Noise | None = None
    image_size: tuple[int, int] | None = None  # (SH, SW)

    def require(self, field: str, *, by: str) -> Any:
        """The field, or an error that says which samples lack it and who asked."""
        value = getattr(self, field)
        if value is None:
            names = ("images", "moments", "features", "labels", "captions", "noise")
            present = [name for name in names if getattr(self, name) is not None]
            raise RegscaleError(
                f"sample {self.keys[0]}",
                f"has no '{field}', which {by} needs",
                found=", ".join(present) or "no field at all",
                fix=f"Choose data that holds {field}, or another kind than {by}.",
            )
        return value

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on `device` (a copy may still be under way), where
        stored halves become fp32."""

        def move(tensor: Tensor) -> Tensor:
            there = tensor.to(device, non_blocking=True)
            return there.float() if there.dtype == torch.float16 else there

        moved = self.map(move)
        if moved.images is None:
            return moved
        return replace(moved, images=moved.images.contiguous())  # decoders write channels last

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of tensors that another stream made until `stream` has used them."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self.map(record)

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory; the loader calls this."""
        return self.map(lambda tensor: tensor.pin_memory())

    def split(self, size: int) -> Iterator[Batch]:
        """The batch in parts of `size` samples, in order."""
        for start in range(0, len(self.keys), size):
            part = self.map(lambda tensor, s=start: tensor[s : s + size])  # type: ignore[misc]
            captions = self.captions and self.captions[start : start + size]
            yield replace(part, keys=self.keys[start : start + size], captions=captions)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor replaced."""
        return Batch(**{f: _map(getattr(self, f), function) for f in self.__dataclass_fields__})


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_map(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


@dataclass(frozen=True, slots=True)
class Draw:
    """The chance of a training step, ready to use."""

    times: Times
    noise: Entangled
    keep: Tensor  # (B,) bool: False where the condition is dropped
    moving: Times | None = None  # 1 where a leaf's loss counts, 0 where it stands still


@dataclass(frozen=True, slots=True)
class Example:
    """A batch as the objective sees it."""

    clean: Entangled
    features: tuple[Features, ...]  # one per aligned target
    condition: Any  # a NamedTuple of its conditioner, such as `Labels` or `Text`


class Prediction(NamedTuple):
    """Velocities of the leaves, and projected hidden states for each aligned target."""

    latents: Tensor  # (B, C, H, W)
    tokens: tuple[Tensor, ...]  # of (B, K, R)
    aligned: tuple[Tensor | None, ...] = ()  # of (B, K + N, R)


class Losses(NamedTuple):
    """Losses of each sample, unweighted, fp32."""

    denoising: Tensor  # (B,)
    tokens: tuple[Tensor, ...]  # of (B,), one per entangled target
    alignment: tuple[Tensor | None, ...]  # of (B,), one per aligned target; None once stopped


@dataclass(frozen=True, slots=True)
class Shard:
    """The part [start, stop) of one flattened fp32 tensor of a model that a rank holds.

    `owner` is False where another rank writes the same range. `optimizer` holds the moments of
    that range by their torch names (`exp_avg`, `exp_avg_sq`); empty for buffers. `trainable` is
    False for buffers and frozen parameters.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    owner: bool
    master: Tensor  # (stop - start,) fp32
    optimizer: dict[str, Tensor]
    trainable: bool = True


@runtime_checkable
class HasBlocks(Protocol):
    """What an engine needs to know of a model."""

    blocks: nn.ModuleList  # the units an engine shards, checkpoints and compiles

    def low_precision(self) -> Iterator[nn.Module]:
        """The parts whose matrix products run in the engine's compute dtype."""
        ...


def choose(keep: Tensor, kept: Any, dropped: Any) -> Any:
    """Field by field and sample by sample, `kept` where `keep` (B,) and `dropped` elsewhere."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return map_tensors(pick, kept, dropped)


def map_tensors(function: Callable[..., Tensor], *conditions: Any) -> Any:
    """`function` of the tensors at each place of conditions of one type."""
    first = conditions[0]
    if isinstance(first, Tensor):
        return function(*conditions)
    items = [map_tensors(function, *each) for each in zip(*conditions, strict=True)]
    return type(first)(*items) if hasattr(first, "_fields") else tuple(items)
