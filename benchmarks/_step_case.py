"""What the step benchmark computes: REG on SiT with everything that is frozen already computed.

B batch, C H W latents, N patch tokens, R width of the target (DINOv2-B: 768, one class token).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regscale.conditioning import class_label
from regscale.models import AlignPart, Parts, TokenPart
from regscale.models.sit import SIZES, Config, SiT, build
from regscale.types import Batch, Features, Labels, Moments, Noise

LATENT_SHAPE = (4, 32, 32)  # 256 px behind an f8d4 autoencoder
TOKEN_SHAPE = (1, 768)
NUM_CLASSES = 1000
ALIGNMENT_DEPTH = {"S": 4, "B": 4, "L": 8, "XL": 8}
TOKEN_WEIGHT, ALIGNMENT_WEIGHT, DROPOUT = 0.03, 0.5, 0.1
LEARNING_RATE, MAX_GRAD_NORM, EMA_DECAY = 1e-4, 1.0, 0.9999

CONDITIONER = class_label.build(class_label.Config(num_classes=NUM_CLASSES, names=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, a batch and a precision. Depth, width and heads are those of `size` unless given."""

    size: str = "B"
    depth: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    patch_size: int = 2
    batch_size: int = 32
    precision: str = "fp32"
    compile: bool = False
    engine: str = "single"  # of regscale's loop

    @property
    def config(self) -> Config:
        assert self.size in SIZES, f"unknown size {self.size}"
        return Config(
            size=self.size,  # type: ignore[arg-type]
            depth=self.depth,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            patch_size=self.patch_size,
        )

    @property
    def num_patches(self) -> int:
        return (LATENT_SHAPE[1] // self.patch_size) * (LATENT_SHAPE[2] // self.patch_size)

    def settings(self) -> dict[str, object]:
        """The case in full, as a report holds it."""
        depth, hidden_size, num_heads = self.config.shape
        return {
            "size": self.size,
            "depth": depth,
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "patch_size": self.patch_size,
            "sequence": self.num_patches + TOKEN_SHAPE[0],
            "batch_size": self.batch_size,
            "precision": self.precision,
            "compile": self.compile,
            "engine": self.engine,
        }

    def model(self) -> SiT:
        """On the meta device."""
        depth = min(ALIGNMENT_DEPTH[self.size], self.config.shape[0])
        parts = Parts(
            latent_shape=LATENT_SHAPE,
            tokens=(TokenPart(0, *TOKEN_SHAPE),),
            aligned=(AlignPart(depth, TOKEN_SHAPE[1], 2048, 0, has_patches=True),),
            embedder_slot=CONDITIONER.slot,
            embedder=CONDITIONER.embedder,
        )
        with torch.device("meta"):
            return build(self.config, parts)

    def flops(self) -> float:
        """Of one forward of one image, 2 x multiply-adds, counted on the meta device."""
        meta = torch.device("meta")
        t, label = torch.zeros(1, device=meta), torch.zeros(1, device=meta, dtype=torch.int64)
        latents = torch.zeros(1, *LATENT_SHAPE, device=meta)
        tokens = torch.zeros(1, *TOKEN_SHAPE, device=meta)
        with FlopCounterMode(display=False) as counter:
            self.model()(latents, (tokens,), t, (t,), Labels(label))
        return float(counter.get_total_flops())

    def batch(self, seed: int, device: torch.device) -> Batch:
        """A batch as a data set with stored moments and features gives it, on the device."""
        generator = torch.Generator().manual_seed(seed)
        B, normal = self.batch_size, _normal(generator)
        return Batch(
            keys=tuple(str(i) for i in range(B)),
            positions=torch.arange(B),
            moments=Moments(normal(B, *LATENT_SHAPE), 0.1 * normal(B, *LATENT_SHAPE).abs()),
            features={
                "dinov2": Features(
                    normal(B, *TOKEN_SHAPE), normal(B, self.num_patches, TOKEN_SHAPE[1])
                )
            },
            labels=torch.randint(NUM_CLASSES, (B,), generator=generator),
            noise=Noise(
                times=torch.rand(B, generator=generator),
                keep=torch.rand(B, generator=generator),
                posterior=normal(B, *LATENT_SHAPE),
                latents=normal(B, *LATENT_SHAPE),
                tokens=(normal(B, *TOKEN_SHAPE),),
            ),
        ).to(device)


def _normal(generator: torch.Generator) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(*shape, generator=generator)


@dataclass(frozen=True, slots=True)
class Tensors:
    """The same batch as a loop without a framework would have it: nothing left to encode."""

    latents: Tensor  # (B, C, H, W)
    tokens: Tensor  # (B, 1, R)
    noise: Tensor  # (B, C, H, W)
    token_noise: Tensor  # (B, 1, R)
    times: Tensor  # (B,)
    labels: Tensor  # (B,), some of them dropped
    features: Tensor  # (B, 1 + N, R)


def tensors(batch: Batch) -> Tensors:
    """A batch of `Case.batch`, encoded once before anything is timed."""
    moments, noise = batch.require("moments", by="step"), batch.require("noise", by="step")
    tokens, patches = batch.require("features", by="step")["dinov2"]
    labels = batch.require("labels", by="step")
    return Tensors(
        latents=moments.mean + moments.std * noise.posterior,
        tokens=tokens,
        noise=noise.latents,
        token_noise=noise.tokens[0],
        times=noise.times,
        labels=torch.where(noise.keep >= DROPOUT, labels, NUM_CLASSES),
        features=torch.cat([tokens, patches], dim=1),
    )
