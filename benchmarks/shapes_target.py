"""Train the target of ShapeCaps and write the file that the package ships.

    python -m benchmarks.shapes_target

Minutes on one core; the same file on the same machine. It sees scenes of the train split only.
"""

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._small_target import keep
from regscale.data import shapecaps
from regscale.data._scenes import KINDS
from regscale.data._shapes import COLOURS, SHAPES, mask
from regscale.data.shapecaps import Split
from regscale.representations._small_vit import SmallViT
from regscale.representations.shapes_vit import SHAPE, WEIGHTS, to_canvas

STEPS, BATCH, RATE, SEED = 1200, 64, 2e-3, 0
WORDS = [*SHAPES, *COLOURS]  # named one by one: a pair that is never seen is none of the names
REDRAW = 0.5  # weight of the squared error of the 8x8 picture redrawn from the class token


class Pupil(nn.Module):
    """The vision transformer with the three heads that teach it; only the former is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = SmallViT(SHAPE)
        nn.init.normal_(self.vit.class_token, std=0.02)
        nn.init.normal_(self.vit.positions, std=0.02)
        self.present = nn.Linear(SHAPE.width, len(WORDS))
        self.redraw = nn.Linear(SHAPE.width, 3 * SHAPE.rows**2)
        self.name_patches = nn.Linear(SHAPE.width, len(WORDS))

    def loss(self, images: Tensor, present: Tensor, patches: Tensor) -> Tensor:
        """What is there and a thumbnail from the class token; what each patch shows."""
        pixels = to_canvas(images)
        hidden = self.vit(pixels)
        token = hidden[:, 0]
        there = F.binary_cross_entropy_with_logits(self.present(token), present)
        redrawn = F.mse_loss(self.redraw(token), F.avg_pool2d(pixels, SHAPE.patch).flatten(1))
        named = F.binary_cross_entropy_with_logits(self.name_patches(hidden[:, 1:]), patches)
        return 5 * (there + named) + REDRAW * redrawn

    @torch.no_grad()
    def figures(self, split: Split) -> dict[str, float]:
        """Scenes of which all words are right, and patches, in %; none was trained on."""
        images, present, patches = scenes(split, range(1000))
        hidden = self.vit(to_canvas(images))
        there = (self.present(hidden[:, 0]) > 0) == present.bool()
        named = (self.name_patches(hidden[:, 1:]) > 0) == patches.bool()
        return {
            "scenes": 100 * there.all(-1).float().mean().item(),
            "patches": 100 * named.all(-1).float().mean().item(),
        }


def scenes(split: Split, indices: range) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, 32, 32), the words of each (B, 13), and those of each patch (B, 64, 13)."""
    kinds = tuple(k for k in KINDS if split != "held_out" or shapecaps.held_out_in(k))
    source = shapecaps.build(shapecaps.Config(num_samples=10**9, split=split, kinds=kinds))
    images = source.read(list(indices), list(indices)).images
    shown = torch.zeros(len(indices), SHAPE.side, SHAPE.side, len(WORDS))
    for row, index in enumerate(indices):
        for figure in source.scene(index).figures:
            top, left, size = figure.top, figure.left, figure.size
            area = shown[row, top : top + size, left : left + size]
            words = [WORDS.index(figure.shape), WORDS.index(figure.colour)]
            area[torch.tensor(mask(figure.shape, size, size))] = one_hot(words)
    p = SHAPE.patch
    middles = shown[:, p // 2 :: p, p // 2 :: p]  # the pixel in a patch's middle names it
    return images, shown.amax((1, 2)), middles.flatten(1, 2)


def one_hot(words: list[int]) -> Tensor:
    """(13,) 1 for these words."""
    return torch.zeros(len(WORDS)).index_fill(0, torch.tensor(words), 1.0)


def teach() -> tuple[nn.Module, dict[str, str]]:
    """The trained transformer and its figures, in the precision that the file keeps."""
    begin, pupil = time.perf_counter(), Pupil()
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in range(STEPS):
        loss = pupil.loss(*scenes("train", range(step * BATCH, (step + 1) * BATCH)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.4f}, {time.perf_counter() - begin:.0f} s")
    pupil.vit.half().float()
    seen, held_out = pupil.figures("validation"), pupil.figures("held_out")
    return pupil.vit, {
        "seen_scenes": f"{seen['scenes']:.1f}",
        "seen_patches": f"{seen['patches']:.1f}",
        "held_out_scenes": f"{held_out['scenes']:.1f}",
        "held_out_patches": f"{held_out['patches']:.1f}",
    }


if __name__ == "__main__":
    keep("python -m benchmarks.shapes_target", WEIGHTS, seed=SEED, teach=teach)
