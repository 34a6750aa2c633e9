"""The frozen towers: a batch of what shards hold to an example that the objective takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from regscale.autoencoders import Autoencoder
from regscale.conditioning import Conditioner
from regscale.representations import Target
from regscale.types import Batch, Entangled, Example, Features


@dataclass(frozen=True, slots=True)
class Towers:
    """Autoencoder, targets by name, and conditioner; which targets are entangled and aligned."""

    autoencoder: Autoencoder
    targets: Mapping[str, Target]
    conditioner: Conditioner
    entangled: tuple[str, ...]
    aligned: tuple[str, ...]
    grid: tuple[int, int]  # of the backbone's patches

    def to(self, device: torch.device) -> "Towers":
        targets = {name: target.to(device) for name, target in self.targets.items()}
        return replace(self, autoencoder=self.autoencoder.to(device), targets=targets)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Example:
        """Stored moments and features where the batch has them, computed ones elsewhere."""
        features = {name: self._features(name, batch) for name in self._used()}
        return Example(
            clean=Entangled(
                self._latents(batch), tuple(features[name].tokens for name in self.entangled)
            ),
            features=tuple(features[name] for name in self.aligned),
            condition=self.conditioner.encode(batch),
        )

    def _used(self) -> list[str]:
        return list(dict.fromkeys((*self.entangled, *self.aligned)))

    def _latents(self, batch: Batch) -> Tensor:
        moments = batch.moments
        if moments is None:
            moments = self.autoencoder.encode(batch.require("images", by="the autoencoder"))
        return self.autoencoder.latents(moments, batch.require("noise", by="training").posterior)

    def _features(self, name: str, batch: Batch) -> Features:
        if batch.features is not None and name in batch.features:
            return batch.features[name]
        images = batch.require("images", by=f"target {name}")
        features, target = self.targets[name](images), self.targets[name]
        grid = target.grid(*images.shape[-2:])
        if grid is None or grid == self.grid or features.patches is None:
            return features
        return features._replace(patches=resample(features.patches, grid, self.grid))


def resample(patches: Tensor, grid: tuple[int, int], onto: tuple[int, int]) -> Tensor:
    """Patch vectors (B, N, R) of one grid on another, bilinear with antialiasing."""
    B, _, R = patches.shape
    image = patches.transpose(1, 2).reshape(B, R, *grid)
    resized = F.interpolate(image, onto, mode="bilinear", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2)
