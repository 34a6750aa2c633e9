"""DINOv2 with or without registers (arXiv 2304.07193, 2309.16588), fed as REG feeds it.

The model is transformers'; its embeddings are computed here, because REG resamples the position
table with antialiasing and `Dinov2Model` does not. Weights are read at the first use.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, Dinov2Model, Dinov2WithRegistersModel

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.pretrained import DTYPES, channels, identity, load, place, reading
from regscale.representations._tokens import RECIPES, features_of, num_tokens_of
from regscale.representations._vision import Settings, Shape
from regscale.types import Features

CLASSES = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
WIDTHS = {"small": 384, "base": 768, "large": 1024, "giant": 1536}
PUBLISHED = {
    f"facebook/dinov2-{infix}{size}": Shape(width, 14, None, registers)
    for size, width in WIDTHS.items()
    for infix, registers in (("", 0), ("with-registers-", 4))
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
RECIPE = f"/255, {MEAN}, {STD}, bicubic; positions: bicubic, antialiased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """`size` null: 224 for each 256 pixels. `token: mean` is in REG's table of ablations."""

    model: str = "facebook/dinov2-base"


class Dinov2Target:
    """The frozen model as a target: its tokens and its patches after the last LayerNorm."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.width, self.patch, _, registers = _shape(config.model)
        self.num_tokens = num_tokens_of(config.token, registers=registers, has_patches=True)
        if config.size is not None and config.size % self.patch:
            raise Invalid(
                "size",
                f"is a multiple of the patch size {self.patch}",
                found=config.size,
                fix=f"Try {max(1, config.size // self.patch) * self.patch}.",
            )
        self._device = torch.device("cpu")
        self._tables: dict[tuple[int, int], Tensor] = {}  # by grid, (1, 1 + N, R) fp32

    @cached_property
    def model(self) -> Any:
        """The loaded model, frozen; its last LayerNorm stays fp32."""
        model = _load(self.config.model).to(DTYPES[self.config.dtype])
        model.layernorm.float()
        return model.to(self._device).eval().requires_grad_(False)

    @cached_property
    def identity(self) -> str:
        """A hash of weights and preprocessing, whatever names a library gives the tensors."""
        recipe = [RECIPE, f"size {self.config.size}", self.config.dtype]
        recipe += RECIPES[self.config.token]
        return identity("dinov2", recipe, self.model.state_dict().values())

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the encoder's input, rounded down to whole patches."""
        size = self.config.size
        wanted, of = (224, 256) if size is None else (size, min(height, width))
        rows, columns = (side * wanted // of // self.patch for side in (height, width))
        return max(1, rows) * self.patch, max(1, columns) * self.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """16x16 for 256x256 pixels, 32x32 for 512x512."""
        rows, columns = self.input_size(height, width)
        return rows // self.patch, columns // self.patch

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Tokens and patches of uint8 images (B, 3, SH, SW), in fp32 also under autocast."""
        rows, columns = self.grid(*images.shape[-2:])
        with torch.autocast(images.device.type, enabled=False):
            pixels = encoder_input(images, self.input_size(*images.shape[-2:]))
            hidden = self.model.encoder(self._embed(pixels, (rows, columns))).last_hidden_state
            normalised = self.model.layernorm(hidden.float())
        # registers stand between the class token and the patches
        heads, patches = normalised.split([normalised.shape[1] - rows * columns, rows * columns], 1)
        return features_of(self.config.token, heads, patches)

    def _embed(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + registers + N, R): registers have no position."""
        parts, B = self.model.embeddings, len(pixels)
        table = self._positions(grid)
        patches = parts.patch_embeddings(pixels) + table[:, 1:]
        prefix = [parts.cls_token + table[:, :1]]
        if hasattr(parts, "register_tokens"):
            prefix.append(parts.register_tokens)
        embedded = torch.cat([*[tokens.expand(B, -1, -1) for tokens in prefix], patches], dim=1)
        return embedded.to(DTYPES[self.config.dtype])

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid not in self._tables:
            # on the CPU, so that every device gets the same table
            table = self.model.embeddings.position_embeddings.detach().float().cpu()
            self._tables[grid] = resample_positions(table, grid).to(self._device)
        return self._tables[grid]

    def to(self, device: torch.device) -> "Dinov2Target":
        self._device = torch.device(device)
        self._tables.clear()
        if "model" in self.__dict__:
            self.model.to(self._device)
        return self


def build(config: Config) -> Dinov2Target:
    """The target, nothing loaded yet."""
    return Dinov2Target(config)


def encoder_input(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images as REG gives them to the encoder: normalised first, then resized."""
    mean, std = (channels(values, images.device) for values in (MEAN, STD))
    return F.interpolate((images.float() / 255 - mean) / std, size, mode="bicubic")


def resample_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table (1, 1 + N, R) of a square grid on another grid, bicubic and antialiased.

    This is timm's `resample_abs_pos_embed`, with which REG prepares DINOv2; the class token's
    row is kept.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    image = (
        table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    )  # (1, R, rows, cols)
    resized = F.interpolate(image, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _shape(name: str) -> Shape:
    """From a folder's config.json or the table of published models."""
    if name in PUBLISHED and not Path(name).is_dir():
        return PUBLISHED[name]
    config = _model_config(name)
    registers = getattr(config, "num_register_tokens", 0)
    return Shape(config.hidden_size, config.patch_size, None, registers)


def _model_config(name: str) -> Any:
    with reading(name, kind="dinov2"):
        config = AutoConfig.from_pretrained(place(name), trust_remote_code=False)
    if config.model_type not in CLASSES:
        raise RegscaleError(
            f"dinov2: model {name}",
            f"is not of type {' or '.join(CLASSES)}",
            found=config.model_type,
            fix="Choose a DINOv2 model, such as facebook/dinov2-base, or another kind of target.",
        )
    return config


def _load(name: str) -> Any:
    config = _model_config(name)
    source = CLASSES[config.model_type]
    return load(source, name, kind="dinov2", config=config, dtype=torch.float32)
