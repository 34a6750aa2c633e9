"""The encoders of a run's config, and the fields that they give each picture.

C H W latents, K tokens of a target, R their width, N patches; with a flip all fields lead with 2.
fp16 rounds by at most 2^-11 of a value, and by at most 2^-25 below 2^-14.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regscale.autoencoders import Autoencoder
from regscale.config import kind_of, plugin
from regscale.config.slots import nearest
from regscale.data import Bucketed, Size, spelled
from regscale.encoding import identity_at
from regscale.errors import RegscaleError
from regscale.recipe import RunConfig
from regscale.representations import Target

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
MOMENTS = "moments"
BLOCK, NPY_HEADER = 512, 128  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """Pictures to what is stored beside them; each encoder is called once for a batch, and once
    more for its mirror image."""

    autoencoder: Autoencoder | None
    targets: Mapping[str, Target]
    image_size: tuple[int, int]
    dtype: str  # fp16, fp32: of what is stored
    flip: bool
    patches: bool
    device: torch.device

    @property
    def identities(self) -> dict[str, str]:
        """Of the encoder of each field, with the size of its pictures."""
        made_by = {MOMENTS: self.autoencoder, **self.targets}
        return {
            member: identity_at(encoder.identity, self.image_size)
            for name, encoder in made_by.items()
            for member in (f"{name}.npy", f"{name}.patches.npy")
            if encoder is not None and member in self.shapes
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each field of one sample."""
        found: dict[str, tuple[int, ...]] = {}
        if self.autoencoder is not None:
            C, H, W = self.autoencoder.latent_shape(*self.image_size)
            found[f"{MOMENTS}.npy"] = (2 * C, H, W)
        for name, target in self.targets.items():
            found[f"{name}.npy"] = (target.num_tokens, target.width)
            grid = target.grid(*self.image_size)
            if self.patches and grid is not None:
                found[f"{name}.patches.npy"] = (prod(grid), target.width)
        return {field: (2, *shape) if self.flip else shape for field, shape in found.items()}

    @property
    def bytes_a_sample(self) -> dict[str, int]:
        """What each field takes in a tar, with its headers."""
        width = DTYPES[self.dtype].itemsize
        return {
            field: BLOCK + -(-(NPY_HEADER + width * prod(shape)) // BLOCK) * BLOCK
            for field, shape in self.shapes.items()
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Array]:
        """Fields (B, ...) of uint8 images (B, 3, SH, SW)."""
        images = images.to(self.device)
        rows = [self._encode(each) for each in (images, images.flip(-1))[: 1 + self.flip]]
        return {
            field: self._rounded(field, torch.stack([row[field] for row in rows], 1))
            if self.flip
            else self._rounded(field, first)
            for field, first in rows[0].items()
        }

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.autoencoder is not None:
            found[f"{MOMENTS}.npy"] = torch.cat(self.autoencoder.encode(images), dim=1)
        for name, target in self.targets.items():
            features = target(images)
            found[f"{name}.npy"] = features.tokens
            if self.patches and features.patches is not None:
                found[f"{name}.patches.npy"] = features.patches
        return found

    def _rounded(self, field: str, values: Tensor) -> Array:
        rounded = values.to(DTYPES[self.dtype])
        if not bool(torch.isfinite(rounded).all()):
            largest = float(values.abs().max())
            raise RegscaleError(
                f"encode: field '{field}'",
                f"holds numbers that {self.dtype} cannot",
                found=f"{largest:g} at most in size",
                fix="Store --dtype fp32; if they are not finite either, compute in dtype fp32.",
            )
        return np.asarray(rounded.cpu().numpy())


def build(
    config: RunConfig,
    names: Sequence[str] | None,
    *,
    dtype: str,
    flip: bool,
    patches: bool,
    device: torch.device,
    image_size: Size | None = None,
) -> Encoders:
    """The autoencoder and the targets that the run uses, or those of `names` alone, for pictures of
    the size of its data or of another."""
    chosen = _chosen(config, names)
    targets = {
        name: _built("regscale.representations", config.targets[name]).to(device)
        for name in chosen
        if name != MOMENTS
    }
    made = Encoders(
        autoencoder=_built("regscale.autoencoders", config.autoencoder).to(device)
        if MOMENTS in chosen
        else None,
        targets=targets,
        image_size=image_size or _image_size(config),
        dtype=dtype,
        flip=flip,
        patches=patches,
        device=device,
    )
    if patches and not any(field.endswith(".patches.npy") for field in made.shapes):
        raise RegscaleError(
            "encode: --patches",
            "needs a target with patches",
            found=", ".join(made.targets) or "no target",
            fix="Leave it out, or name another target in --fields.",
        )
    return made


def _image_size(config: RunConfig) -> Size:
    """That of the run's data, where it has one."""
    source = _built("regscale.data", config.data)
    if isinstance(source, Bucketed):
        raise RegscaleError(
            "encode: --size",
            "is needed of one bucket's pictures",
            found="a run on buckets",
            fix=f"Give one of {', '.join(spelled(b.image_size) for b in source.buckets.values())}.",
        )
    size: Size = source.image_size
    return size


def _chosen(config: RunConfig, names: Sequence[str] | None) -> list[str]:
    """Moments and targets to encode."""
    for name in names or ():
        if name not in (MOMENTS, *config.targets):
            raise RegscaleError(
                "encode: --fields",
                "names the moments and targets of the config",
                found=repr(name),
                fix=nearest(name, [MOMENTS, *config.targets]),
            )
    used = [n for n in config.targets if n in {**config.entangled, **config.aligned}]
    return [MOMENTS, *used] if names is None else list(names)


def npy(values: Array) -> bytes:
    """As `numpy.save` writes it."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _built(package: str, config: Any) -> Any:
    return plugin(package, kind_of(config)).build(config)
