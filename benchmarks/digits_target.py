"""Train the target of the embedded digits and write the file that the package ships.

    python -m benchmarks.digits_target

A minute on one core; the same file on the same machine. The target sees the train split only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._small_target import keep
from benchmarks.digits_training import grey_split, train
from regscale.representations.digits_vit import SIDE, WEIGHTS, WIDTH, DigitsViT

STEPS, RATE, SEED = 2400, 2e-3, 0
REDRAW = 0.3  # weight of the squared error of the digit redrawn from its class token


class Pupil(nn.Module):
    """The vision transformer with the two heads that teach it; only the former is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = DigitsViT()
        nn.init.normal_(self.vit.class_token, std=0.02)
        nn.init.normal_(self.vit.positions, std=0.02)
        self.name_it = nn.Linear(WIDTH, 10)
        self.redraw = nn.Linear(WIDTH, SIDE * SIDE)
        self.name_patches = nn.Linear(WIDTH, 10)

    def loss(self, grey: Tensor, labels: Tensor) -> Tensor:
        """Names from the class token and from the mean patch, and the digit from the former."""
        hidden = self.vit(grey[:, None])
        named = F.cross_entropy(self.name_it(hidden[:, 0]), labels, label_smoothing=0.1)
        patches = F.cross_entropy(
            self.name_patches(hidden[:, 1:].mean(1)), labels, label_smoothing=0.1
        )
        redrawn = F.mse_loss(self.redraw(hidden[:, 0]), grey.flatten(1))
        return named + patches + REDRAW * redrawn

    @torch.no_grad()
    def figures(self, split: str) -> dict[str, float]:
        """Accuracy in %, and the share of variance of the pixels that redrawing explains."""
        grey, labels = grey_split(split)
        token = self.vit(grey[:, None])[:, 0]
        right = (self.name_it(token).argmax(1) == labels).float().mean()
        error = F.mse_loss(self.redraw(token), grey.flatten(1)) / grey.var(0).mean()
        return {"accuracy": 100 * right.item(), "explained": 1 - error.item()}


def teach() -> tuple[nn.Module, dict[str, str]]:
    """The trained transformer and its figures, in the precision that the file keeps."""
    pupil = Pupil()
    train(pupil, pupil.loss, split="train", steps=STEPS, rate=RATE, seed=SEED)
    pupil.vit.half().float()
    judged, seen = pupil.figures("judge"), pupil.figures("train")
    return pupil.vit, {
        "accuracy_judge_split": f"{judged['accuracy']:.2f}",
        "accuracy_train_split": f"{seen['accuracy']:.2f}",
        "explained_judge_split": f"{judged['explained']:.3f}",
    }


if __name__ == "__main__":
    keep("python -m benchmarks.digits_target", WEIGHTS, seed=SEED, teach=teach)
