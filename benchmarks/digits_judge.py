"""The judge of generated digits: three small convolutional networks that saw the judge split only.

    python -m benchmarks.digits_judge      # train them, write the file, judge the real digits

`judge(images, labels)` says how good generated digits are, by this protocol, which is the one of
every figure in this repository:

- 100 digits of each class, 1,000 in all; a digit is the mean of its three channels in [0, 1].
- `recognised`: the share whose class by the summed logits of the networks is the one asked for.
- `frechet`: the Frechet distance (Heusel et al. 2017, arXiv 1706.08500, eq. 6) of the concatenated
  penultimate features (96). It falls with the size of the samples, so every distance here is of as
  many digits on either side: the 1,797 real digits are halved at random, class by class (896
  each), and as many generated digits are drawn of each class; the mean of 20 such draws.
- `frechet_real`: the distance of the two halves to each other, in the same 20 draws. (Halved
  without regard to class it would be 2.5 times as large and chance by a third: classes are most of
  what these features tell, and a generator that is told the class does not choose their shares.)
- `nearest`: the median over the generated digits of the L2 distance of pixels to the nearest digit
  of the train split; a generator that copies has a small one.
- `nearest_held_out`: the same for the real digits of the judge split, which no generator saw.

Accepted are recognised >= 95%, frechet <= 2 frechet_real, nearest >= 0.8 nearest_held_out.
"""

import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.digits_training import grey_split, train
from regscale.data.digits import Config, build
from regscale.errors import RegscaleError
from regscale.representations.digits_vit import to_grey

WEIGHTS = Path(__file__).with_suffix(".safetensors")
MEMBERS, STEPS, RATE = 3, 1500, 4e-3
FEATURES = 32  # of each network
SPLITS = ("train", "judge")
DRAWS, PER_CLASS = 20, 91  # the largest half of a class has 91 digits


class Network(nn.Module):
    """Four convolutions over 8x8 and 4x4 places, their mean as features, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = [1, 24, 24, 48, FEATURES], list[nn.Module]()
        for place, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.SiLU()] + [nn.MaxPool2d(2)] * (place == 1)
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, 10)

    def features(self, grey: Tensor) -> Tensor:
        return self.trunk(grey[:, None]).mean((2, 3))

    def forward(self, grey: Tensor) -> Tensor:
        return self.head(self.features(grey))


class Judge(nn.Module):
    """Networks that differ in their first weights and in the digits they drew."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(Network() for _ in range(MEMBERS))

    @torch.no_grad()
    def predict(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Classes (B,) and features (B, 96) of grey digits (B, 8, 8) in [-1, 1]."""
        logits = torch.stack([member(grey) for member in self.members]).sum(0)
        features = torch.cat([member.features(grey) for member in self.members], 1)
        return logits.argmax(1), features


def judge(images: Tensor, labels: Tensor) -> dict[str, float]:
    """The figures of generated uint8 digits (n, 3, 8, 8) asked for as labels (n,)."""
    fewest = int(labels.bincount(minlength=10).min())
    if fewest < PER_CLASS:
        raise RegscaleError(
            "benchmarks.digits_judge",
            f"needs at least {PER_CLASS} digits of every class, as many as it compares them with",
            found=f"a class with {fewest}",
            fix="Generate 1,000 digits, 100 of each class.",
        )
    grey = to_grey(images)
    named, features = load_judge().predict(grey)
    seen, held_out = grey_split("train")[0], grey_split("judge")[0]
    frechet, between_real = _distances(features.double().numpy(), labels.numpy())
    return {
        "recognised": (named == labels).float().mean().item(),
        "frechet": frechet,
        "frechet_real": between_real,
        "nearest": _nearest(grey, seen),
        "nearest_held_out": _nearest(held_out, seen),
    }


def accepted(figures: dict[str, float]) -> bool:
    """Whether the figures pass the three conditions of the protocol."""
    return (
        figures["recognised"] >= 0.95
        and figures["frechet"] <= 2 * figures["frechet_real"]
        and figures["nearest"] >= 0.8 * figures["nearest_held_out"]
    )


@lru_cache(maxsize=1)
def load_judge() -> Judge:
    """The networks of the file beside this module."""
    model = Judge()
    model.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return model.eval()


def _distances(generated: np.ndarray, asked: np.ndarray) -> tuple[float, float]:
    """Mean distances of generated to real and of real to real digits, in equal numbers."""
    grey, labels = (torch.cat(parts) for parts in zip(*map(grey_split, SPLITS), strict=True))
    real, rng = load_judge().predict(grey)[1].double().numpy(), np.random.default_rng(0)
    pairs = []
    for _ in range(DRAWS):
        one, other, drawn = [], [], []
        for label in range(10):
            order = rng.permutation(np.flatnonzero(labels.numpy() == label))
            half = len(order) // 2
            one.append(order[:half])
            other.append(order[half : 2 * half])
            drawn.append(rng.permutation(np.flatnonzero(asked == label))[:half])
        base = real[np.concatenate(one)]
        pairs.append(
            (
                frechet_distance(generated[np.concatenate(drawn)], base),
                frechet_distance(real[np.concatenate(other)], base),
            )
        )
    return float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs]))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two clouds (n, d), eq. 6 of 1706.08500."""
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # C1 C2 and C1^(1/2) C2 C1^(1/2) have the same eigenvalues; the latter is symmetric.
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    shift = ((one.mean(0) - other.mean(0)) ** 2).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * cross)


def _nearest(grey: Tensor, seen: Tensor) -> float:
    """Median L2 distance, in pixels of [0, 1], to the nearest digit seen."""
    distances = torch.cdist(grey.flatten(1) / 2, seen.flatten(1) / 2)
    return distances.min(1).values.median().item()


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    begin, model = time.perf_counter(), Judge()
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        member = model.members[seed] = Network()

        def loss(grey: Tensor, labels: Tensor, member: nn.Module = member) -> Tensor:
            return F.cross_entropy(member(grey), labels, label_smoothing=0.05)

        train(member, loss, split="judge", steps=STEPS, rate=RATE, seed=seed)
    model.half().float().eval()  # as the file stores it
    unseen, labels = grey_split("train")
    accuracy = (model.predict(unseen)[0] == labels).float().mean().item()
    state = {n: v.half() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    metadata = {
        "accuracy_train_split": f"{100 * accuracy:.2f}",
        "command": "python -m benchmarks.digits_judge",
    }
    save_file(state, WEIGHTS, metadata=metadata)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size:,} bytes, {time.perf_counter() - begin:.0f} s")
    report()


def report() -> None:
    """Print what the judge says of real digits that it never saw."""
    with safe_open(WEIGHTS, "pt") as file:
        print(f"accuracy on the train split, unseen: {file.metadata()['accuracy_train_split']}%")
    load_judge.cache_clear()
    source = build(Config(split="train"), (8, 8))
    figures = judge(source.images, source.labels)
    del figures["nearest"]  # of training digits to themselves: 0
    print("the train split, judged as if generated:")
    for name, value in figures.items():
        print(f"  {name}: {value:.4f}")


if __name__ == "__main__":
    main()
