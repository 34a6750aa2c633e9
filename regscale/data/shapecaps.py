"""ShapeCaps: shapes with captions that have a right answer, made as they are read.

Sample i is a pure function of (seed, split, kinds, i): no download, no file, and no end to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from regscale import chance
from regscale.config import Invalid
from regscale.data import _captions
from regscale.data._scenes import (
    ALL_KINDS,
    KINDS,
    SOURCES,
    Prompt,
    Scene,
    captions,
    scene,
    scene_of,
)
from regscale.data._shapes import CANVAS, Pixels, draw, enlarged
from regscale.errors import RegscaleError
from regscale.types import Batch

Split = Literal["train", "validation", "held_out"]
Pairing = Literal["own", "shuffled"]

NUM_HASHED = 64  # scenes that the fingerprint looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which of the scenes; each split has scenes of its own."""

    num_samples: int = 50_000  # of an epoch; more cost nothing
    size: int = 32  # pixels of a side: 32, or doubled
    split: Split = "train"  # held_out: captions of which no other split shows the content
    seed: int = 0  # of the scenes and of the choice among their three captions
    kinds: tuple[str, ...] = KINDS  # of the captions, equally frequent; compound can be added
    caption_weights: dict[str, float] = field(default_factory=dict)  # short, full, relation
    captions: Pairing = "own"  # shuffled: of another scene of the kind, a control
    flip: bool = False  # refused: the captions say left and right

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise Invalid("num_samples", "is positive", found=self.num_samples, fix="Try 50000.")
        if self.size < CANVAS or self.size % CANVAS or self.size & (self.size - 1):
            raise Invalid("size", "is 32 or doubled", found=self.size, fix="Try 32 or 64.")
        unknown = [kind for kind in self.kinds if kind not in ALL_KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            text = f"is a list of different names of {', '.join(ALL_KINDS)}"
            raise Invalid("kinds", text, found=list(self.kinds), fix="Leave it out for the six.")
        without = [k for k in self.kinds if self.split == "held_out" and not held_out_in(k)]
        if without:
            raise Invalid(
                "kinds",
                "have held-out captions, for split: held_out",
                found=", ".join(without),
                fix=f"Take of {', '.join(filter(held_out_in, ALL_KINDS))}.",
            )
        if self.flip:
            raise Invalid(
                "flip", "would turn left to right, which captions name", found=True, fix="Drop it."
            )
        foreign = sorted(set(self.caption_weights) - set(SOURCES))
        if foreign:
            raise Invalid(
                "caption_weights",
                f"is of {', '.join(SOURCES)}",
                found=", ".join(foreign),
                fix="Leave it out to take all three equally often.",
            )
        _captions.check(self.caption_weights)


def held_out_in(kind: str) -> bool:
    """Whether some captions of a kind are held out."""
    return bool(captions(kind, held_out=True))


class ShapeCaps:
    """One split as uint8 images (B, 3, SH, SW) and a caption of each; no labels."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.num_samples = config.num_samples
        self.image_size = (config.size, config.size)

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The scenes at `indices`; which of their captions, the place in the run decides."""
        self._check(indices)
        scenes = [self.scene(index) for index in indices]
        told = scenes if self.config.captions == "own" else self._others(indices)
        chosen = zip(told, positions, strict=True)
        return Batch(
            keys=tuple(self.key(index) for index in indices),
            positions=torch.as_tensor(positions, dtype=torch.int64),
            images=torch.from_numpy(pictures(scenes, self.config.size)),
            captions=tuple(self._caption(each, position) for each, position in chosen),
        )

    def scene(self, index: int) -> Scene:
        """What is in sample `index`."""
        about = self.config
        held_out = about.split == "held_out"
        return scene(
            index, seed=about.seed, split=about.split, kinds=about.kinds, held_out=held_out
        )

    def _others(self, indices: Sequence[int]) -> list[Scene]:
        """The next scene of the same kind of each: scenes are independent of one another."""
        return [self.scene(index + len(self.config.kinds)) for index in indices]

    def key(self, index: int) -> str:
        return f"shapecaps-{self.config.split.replace('_', '-')}-{index:08d}"

    @cached_property
    def fingerprint(self) -> str:
        """Of the settings, and of the first pictures and captions that they give."""
        about = self.config
        text = f"{about.num_samples} {about.size} {about.split} {about.seed} {about.kinds}"
        text += "" if about.captions == "own" else f" {about.captions}"
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        scenes = [self.scene(index) for index in range(min(NUM_HASHED, self.num_samples))]
        digest.update(digest_of(scenes))
        return f"shapecaps-{digest.hexdigest()}"

    def _caption(self, found: Scene, position: int) -> str:
        return _captions.caption(
            {"captions": list(found.captions), "caption_sources": list(SOURCES)},
            None,
            self.config.caption_weights,
            draw=lambda: self._uniform(position),
        )

    def _uniform(self, position: int) -> float:
        drawn = chance.uniform(
            (3,), seed=self.config.seed, purpose="data/caption", counter=position
        )
        return float(drawn[0])  # as of shards: an export trains on the same captions

    def _check(self, indices: Sequence[int]) -> None:
        outside = [i for i in indices if not 0 <= i < self.num_samples]
        if outside:
            raise RegscaleError(
                f"shapecaps, split {self.config.split}",
                f"holds the samples 0 to {self.num_samples - 1}",
                found=f"sample {outside[0]}",
                fix="Read indices of this split, or give more num_samples.",
            )


def pictures(scenes: Sequence[Scene], size: int = CANVAS) -> Pixels:
    """(B, 3, size, size) uint8."""
    made = np.empty((len(scenes), 3, CANVAS, CANVAS), dtype=np.uint8)
    for each, picture in zip(scenes, made, strict=True):
        draw(each.figures, picture)
    return enlarged(made, size)


def digest_of(scenes: Sequence[Scene]) -> bytes:
    """Of pictures and captions."""
    digest = hashlib.blake2b(pictures(scenes).tobytes(), digest_size=16)
    for each in scenes:
        digest.update("\n".join(each.captions).encode())
    return digest.digest()


def prompts(
    kind: str, split: Literal["seen", "held_out"] = "seen", *, number: int, seed: int = 0
) -> list[Prompt]:
    """Captions to draw, with what their pictures must hold: every one once before any twice."""
    if kind not in ALL_KINDS:
        raise RegscaleError(
            "ShapeCaps", "has no such kind of captions", found=kind, fix=f"Of {ALL_KINDS}."
        )
    choices = captions(kind, held_out=split == "held_out")
    if not choices:
        raise RegscaleError(
            f"ShapeCaps: {kind}",
            "has no held-out captions",
            found=f"split {split}",
            fix=f"Take of {', '.join(filter(held_out_in, ALL_KINDS))}, or split seen.",
        )
    purpose = f"shapecaps/prompts/{kind}/{split}"
    order: list[int] = []
    for turn in range(-(-number // len(choices))):
        order += chance.permutation(len(choices), seed=seed, purpose=purpose, counter=turn).tolist()
    return [choices[place] for place in order[:number]]


def truth(prompts: Sequence[Prompt], *, seed: int = 0, size: int = CANVAS) -> torch.Tensor:
    """(B, 3, size, size) uint8: a right picture for each prompt, as of a perfect generator."""
    scenes = [scene_of(prompt, index, seed=seed) for index, prompt in enumerate(prompts)]
    return torch.from_numpy(pictures(scenes, size))


def build(config: Config) -> ShapeCaps:
    """The scenes as a source; none is made yet."""
    return ShapeCaps(config)
