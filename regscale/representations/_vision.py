"""What targets that are pretrained vision models share: sizes, lazy weights, precision, identity.

A kind is one short file with `Config`, a `Family` and `build`. B batch, N patches, R width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regscale.config import Invalid
from regscale.pretrained import DTYPES, Dtype, identity
from regscale.representations._pixels import Preprocessing
from regscale.representations._tokens import RECIPES, Token, features_of, num_tokens_of
from regscale.types import Features


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`model` is a hub id or a folder that `save_pretrained` wrote."""

    model: str
    size: int | None = None  # shorter side of the encoder's input; None: the model's own
    token: Token = "class"  # class: what the kind says
    dtype: Dtype = "fp32"  # of matrix products; norms, residuals and features are fp32 always

    def __post_init__(self) -> None:
        if not self.model:
            raise Invalid("model", "names a model", found="''", fix="Give a hub id or a folder.")
        if self.size is not None and self.size < 1:
            raise Invalid("size", "is a positive number", found=self.size, fix="Try 224.")


class Shape(NamedTuple):
    """What must be known of a model before its weights are read."""

    width: int  # R
    patch: int  # pixels on each side
    size: int | None  # side of the images it was trained on; None: it takes any
    registers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What one kind adds. The callables get the kind's `Config`."""

    kind: str
    token: str  # what token and patches are, in words: part of the identity
    shape: Callable[[Any], Shape]
    load: Callable[[Any], Any]  # the model in fp32 on the CPU
    preprocessing: Callable[[Any, Any], Preprocessing]  # of the config and the model
    features: Callable[[Any, Tensor], Features]  # of the model and its input; tokens with registers
    has_patches: bool = True
    square: bool = False  # its input has one size: images of another shape are squeezed into it


class VisionTarget:
    """A frozen vision model as a target of its tokens and, unless it has none, its patches."""

    def __init__(self, family: Family, config: Settings) -> None:
        self.family, self.config = family, config
        self.shape = family.shape(config)
        self.width = self.shape.width
        self.num_tokens = num_tokens_of(
            config.token, registers=self.shape.registers, has_patches=family.has_patches
        )
        if config.size is not None and config.size < self.shape.patch:
            raise Invalid(
                "size",
                f"is at least one patch of {self.shape.patch} pixels",
                found=config.size,
                fix="Leave it out for the model's own size.",
            )
        self._device = torch.device("cpu")

    @cached_property
    def model(self) -> Any:
        """The loaded model, frozen; only linear layers are kept in `dtype`."""
        model = self.family.load(self.config)
        for part in model.modules():
            if isinstance(part, nn.Linear):
                part.to(DTYPES[self.config.dtype])
        return model.to(self._device).eval().requires_grad_(False)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Of the model's own file, or of its authors."""
        return self.family.preprocessing(self.config, self.model)

    @cached_property
    def identity(self) -> str:
        """A hash of weights, preprocessing, size and what is taken for the token."""
        size = f"size {self.config.size or self.shape.size}"
        recipe = [self.family.token, repr(tuple(self.preprocessing)), size, self.config.dtype]
        recipe += RECIPES[self.config.token]
        return identity(self.family.kind, recipe, self.model.state_dict().values())

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the encoder's input: the shorter one fixed, the longer one whole patches."""
        patch, short = self.shape.patch, min(height, width)
        size = self.config.size or self.shape.size or max(patch, short // patch * patch)
        if height == width or self.family.square:
            return size, size
        rows, columns = (
            size if side == short else max(patch, side * size // short // patch * patch)
            for side in (height, width)
        )
        return rows, columns

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of whole patches; None where the token has none of its width."""
        if not self.family.has_patches:
            return None
        rows, columns = self.input_size(height, width)
        return rows // self.shape.patch, columns // self.shape.patch

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Tokens and patches of uint8 images (B, 3, SH, SW), in fp32 also under autocast."""
        device, dtype = images.device.type, DTYPES[self.config.dtype]
        with torch.autocast(device, enabled=False):
            pixels = self.preprocessing(images, self.input_size(*images.shape[-2:]))
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            tokens, patches = self.family.features(self.model, pixels)
        patches = None if patches is None else patches.float()
        return features_of(self.config.token, tokens.float(), patches)

    def to(self, device: torch.device) -> "VisionTarget":
        self._device = torch.device(device)
        if "model" in self.__dict__:
            self.model.to(self._device)
        return self
