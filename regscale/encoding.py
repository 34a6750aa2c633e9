"""The frozen towers: a batch of what shards hold to an example that the objective takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from regscale.autoencoders import Autoencoder
from regscale.conditioning import Conditioner
from regscale.errors import RegscaleError
from regscale.representations import Target
from regscale.types import Batch, Entangled, Example, Features


@dataclass(frozen=True, slots=True)
class Normalisation:
    """From a target's tokens to what is denoised, and back.

    unit: each token gets a root mean square of 1; its length is lost. stats: each dimension gets
    mean 0 and deviation 1 by `stats()`, (R,) each.
    """

    kind: Literal["none", "unit", "stats"] = "none"
    stats: Callable[[], tuple[Tensor, Tensor]] | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        if self.kind == "none":
            return tokens
        if self.kind == "unit":
            scale: float = tokens.shape[-1] ** 0.5
            return F.normalize(tokens.float(), dim=-1) * scale
        mean, std = self._read()
        return (tokens.float() - mean) / std

    def restore(self, tokens: Tensor) -> Tensor:
        """Sampled tokens as the target makes them; with `unit` but for their length."""
        if self.kind != "stats":
            return tokens
        mean, std = self._read()
        return tokens * std + mean

    def _read(self) -> tuple[Tensor, Tensor]:
        assert self.stats is not None, "the recipe asks for them"
        return self.stats()


@dataclass(frozen=True, slots=True)
class Towers:
    """Autoencoder, targets by name, and conditioner; which targets are entangled and aligned."""

    autoencoder: Autoencoder
    targets: Mapping[str, Target]
    conditioner: Conditioner
    entangled: tuple[str, ...]
    aligned: tuple[str, ...]
    grid: tuple[int, int]  # of the backbone's patches, where a batch tells no size of its own
    image_size: tuple[int, int] | None = None  # None: stored patches lie on the backbone's grid
    normalisations: tuple[Normalisation, ...] = ()  # one per entangled target, or none at all

    def to(self, device: torch.device) -> "Towers":
        targets = {name: target.to(device) for name, target in self.targets.items()}
        return replace(
            self,
            autoencoder=self.autoencoder.to(device),
            targets=targets,
            conditioner=self.conditioner.to(device),
        )

    @torch.no_grad()
    def encode(self, batch: Batch) -> Example:
        """Stored moments and features where the batch has them, computed ones elsewhere."""
        features = {name: self._features(name, batch) for name in self._used()}
        return Example(
            clean=Entangled(
                self._latents(batch),
                self.normalised(tuple(features[name].tokens for name in self.entangled)),
            ),
            features=tuple(features[name] for name in self.aligned),
            condition=self.conditioner.encode(batch),
        )

    def normalised(self, tokens: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tokens (B, K, R) of the entangled targets as they are denoised."""
        return tuple(rule(each) for rule, each in zip(self._rules(), tokens, strict=True))

    @torch.no_grad()
    def tokens(self, images: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Of pictures (B, 3, SH, SW) uint8, as they are denoised, for the entangled targets that
        are wanted: what sampling may be given."""
        every = zip(self.entangled, self._rules(), wanted, strict=True)
        return tuple(
            rule(self.targets[name](images).tokens) if asked else None
            for name, rule, asked in every
        )

    def _rules(self) -> tuple[Normalisation, ...]:
        return self.normalisations or (Normalisation(),) * len(self.entangled)

    def _used(self) -> list[str]:
        return list(dict.fromkeys((*self.entangled, *self.aligned)))

    def _latents(self, batch: Batch) -> Tensor:
        moments, noise = batch.moments, batch.require("noise", by="training").posterior
        if moments is None:
            moments = self.autoencoder.encode(batch.require("images", by="the autoencoder"))
        if moments.mean.shape != noise.shape:
            raise _unfit(batch, "moments", moments.mean, noise.shape[1:], "autoencoder")
        return self.autoencoder.latents(moments, noise)

    def _features(self, name: str, batch: Batch) -> Features:
        stored = (batch.features or {}).get(name)
        if stored is None:
            return self._computed(name, batch)
        target = self.targets.get(name)
        if target is None:  # nothing but the data knows it
            return stored
        shape = (target.num_tokens, target.width)
        if stored.tokens.shape[1:] != shape:
            raise _unfit(batch, name, stored.tokens, shape, f"target {name}")
        grid = self._stored_grid(target, batch)
        if name not in self.aligned or grid is None:
            return stored
        if stored.patches is None:
            return stored._replace(patches=self._live_patches(name, batch))
        if stored.patches.shape[1:] != (grid[0] * grid[1], target.width):
            wanted = (grid[0] * grid[1], target.width)
            raise _unfit(batch, f"{name}.patches", stored.patches, wanted, f"target {name}")
        return stored._replace(patches=resample(stored.patches, grid, self._grid(batch)))

    def _stored_grid(self, target: Target, batch: Batch) -> tuple[int, int] | None:
        size = batch.image_size or self.image_size
        return self.grid if size is None else target.grid(*size)

    def _grid(self, batch: Batch) -> tuple[int, int]:
        """Of the backbone's patches, which cover as many pixels at all sizes."""
        if batch.image_size is None or self.image_size is None:
            return self.grid
        (height, width), (rows, columns) = self.image_size, self.grid
        return batch.image_size[0] * rows // height, batch.image_size[1] * columns // width

    def _live_patches(self, name: str, batch: Batch) -> Tensor | None:
        if batch.images is not None:
            return self._computed(name, batch).patches
        raise RegscaleError(
            f"sample {batch.keys[0]}",
            f"has no '{name}.patches', which align.{name} needs",
            found=f"stored tokens of {name} alone, and no images to compute patches from",
            fix=f"Add images or {name}.patches to data.fields, or leave align.{name} out.",
        )

    def _computed(self, name: str, batch: Batch) -> Features:
        images = batch.require("images", by=f"target {name}")
        features, target = self.targets[name](images), self.targets[name]
        grid = target.grid(*images.shape[-2:])
        if grid is None or features.patches is None:
            return features
        return features._replace(patches=resample(features.patches, grid, self._grid(batch)))


def identity_at(identity: str, image_size: tuple[int, int]) -> str:
    """The label of a stored field: its encoder, and the size of the pictures that it was given.

    A token of larger pictures has the same shape, and other values.
    """
    return f"{identity} at {image_size[0]}x{image_size[1]}"


def _unfit(
    batch: Batch, field: str, found: Tensor, wanted: Sequence[int], by: str
) -> RegscaleError:
    """The error to raise for a field of another shape than the run's towers give it."""
    return RegscaleError(
        f"sample {batch.keys[0]}",
        f"'{field}' has the shape {tuple(wanted)} of this run's {by}",
        found=tuple(found.shape[1:]),
        fix=f"Encode the data at this run's image size with its {by}, or leave the field out.",
    )


def resample(patches: Tensor, grid: tuple[int, int], onto: tuple[int, int]) -> Tensor:
    """Patch vectors (B, N, R) of one grid on another, bilinear with antialiasing."""
    if grid == onto:
        return patches
    B, _, R = patches.shape
    image = patches.transpose(1, 2).reshape(B, R, *grid)
    resized = F.interpolate(image, onto, mode="bilinear", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2)
