"""What the digits' target and their judge share: distortions of a digit, and one way to train."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.data.digits import Config, build
from regscale.representations.digits_vit import to_grey


def grey_split(split: str) -> tuple[Tensor, Tensor]:
    """Grey digits (B, 8, 8) in [-1, 1] and labels (B,) of a split."""
    source = build(Config(split=split), (8, 8))
    return to_grey(source.images), source.labels


def distorted(grey: Tensor, generator: torch.Generator, *, noise: float = 0.05) -> Tensor:
    """Each digit turned by up to 10 degrees, scaled by up to 10%, moved by up to 0.8 pixels, with
    normal noise added."""

    def between(low: float, high: float) -> Tensor:
        return torch.rand(len(grey), generator=generator) * (high - low) + low

    angle, scale = between(-math.pi / 18, math.pi / 18), between(0.9, 1.1)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    dx, dy = between(-0.2, 0.2), between(-0.2, 0.2)  # grid_sample counts in half sides of 4 pixels
    rows = [torch.stack([cosine, -sine, dx], 1), torch.stack([sine, cosine, dy], 1)]
    places = F.affine_grid(torch.stack(rows, 1), [len(grey), 1, 8, 8], align_corners=False)
    moved = F.grid_sample(grey[:, None] + 1, places, align_corners=False)[:, 0] - 1
    return moved + noise * torch.randn(grey.shape, generator=generator)


def train(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    split: str,
    steps: int,
    rate: float,
    seed: int,
    batch_size: int = 64,
) -> None:
    """AdamW with a short warm-up and a cosine on distorted digits; loss(grey, labels)."""
    grey, labels = grey_split(split)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            rate * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        chosen = torch.randint(len(grey), (batch_size,), generator=generator)
        value = loss(distorted(grey[chosen], generator), labels[chosen])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    model.eval()
