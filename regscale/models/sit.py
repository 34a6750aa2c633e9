"""SiT with entangled tokens: a transformer whose sequence is [tokens | patches] (REG, section 3).

Parameter names are those of the published checkpoints. B batch, T = sum K + N sequence, D width.
Learnable tokens, where there are any, stand between tokens and patches and are counted in T.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from regscale.config import Invalid
from regscale.layers.attention import Backend, Choice, resolve
from regscale.layers.embedder import Embedder
from regscale.layers.initial import constant, normal, zeros
from regscale.layers.linear import LayerNorm, Linear, PatchEmbed, Projector
from regscale.layers.position import grid_table, resized_table, rotations, token_table
from regscale.layers.transformer import QkNorm, TextMode
from regscale.models import Backbone, Parts
from regscale.models._clean import velocity_of
from regscale.models._condition import embed, embedders
from regscale.models._sit_block import Block
from regscale.models._sit_parts import FinalLayer, TimeEmbedder, slot_name
from regscale.models._stats import TokenStats
from regscale.types import Prediction

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Depth, width and heads are those of `size` unless given.

    `qk_norm_kind` is `layer` as published, or `rms`. `rope` turns queries and keys by the places
    of their patches (text and tokens stay at angle 0) instead of adding a table to the patches, or
    with `rope_table` beside it: angles know distances, a table also the border. With `clean_above`
    the image head answers with clean latents at times above it, and the velocity follows.
    `text` is how a text is read where there is one: `joint` softmax, or `gated`, which leaves a
    model that was trained without text as it was.
    """

    size: Literal["S", "B", "L", "XL"] = "XL"
    depth: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    patch_size: int = 2
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    qk_norm_kind: QkNorm = "layer"
    rope: bool = False
    rope_table: bool = False
    clean_above: float | None = None  # a time within (0, 1]
    text: TextMode = "joint"
    learnable_tokens: int = 0  # more places of the sequence, which no head reads (REG's ablation)
    attention: Backend = "auto"

    def __post_init__(self) -> None:
        depth, width, heads = self.shape
        if self.learnable_tokens < 0:
            raise Invalid(
                "learnable_tokens",
                "is a number of tokens",
                found=self.learnable_tokens,
                fix="Give 0, or more.",
            )
        sizes = {"depth": depth, "patch_size": self.patch_size, "mlp_ratio": self.mlp_ratio}
        for key, value in sizes.items():
            if not value > 0:
                raise Invalid(key, "is a positive number", found=value, fix="Give more than 0.")
        if width < 4 or heads < 1 or width % heads or width % 4:
            raise Invalid(
                "hidden_size",
                "is a multiple of num_heads and of 4",
                found=f"{width} with {heads} heads",
                fix="Choose another hidden_size or num_heads.",
            )
        if self.rope and width // heads % 4:
            raise Invalid(
                "rope",
                "needs a head width that is a multiple of 4",
                found=width // heads,
                fix="Choose another num_heads.",
            )
        if self.clean_above is not None and not 0 < self.clean_above <= 1:
            raise Invalid(
                "clean_above", "is within (0, 1]", found=self.clean_above, fix="Try 0.25, or null."
            )
        if self.rope_table and not self.rope:
            raise Invalid(
                "rope_table",
                "adds the table that a model without rope has anyway",
                found="rope: false",
                fix="Leave it out, or set rope: true.",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(depth, hidden_size, num_heads)."""
        depth, width, heads = SIZES[self.size]
        return (
            depth if self.depth is None else self.depth,
            width if self.hidden_size is None else self.hidden_size,
            heads if self.num_heads is None else self.num_heads,
        )


class SiT(Backbone):
    """Velocities of latents and tokens, and hidden states projected for alignment."""

    places = ("pos_embed", "rotation")
    pos_embed: Tensor  # (1, T, D)
    rotation: Tensor | None  # (2, T, half a head's width)
    learnable_tokens: nn.Parameter | None  # (1, learnable_tokens, D)

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__()
        depth, width, heads = config.shape
        channels, height, columns = parts.latent_shape
        p = self.patch_size = config.patch_size
        self.clean_above = config.clean_above
        self.channels, self.grid = channels, (height // p, columns // p)
        self.parts = parts
        self.x_embedder = PatchEmbed(channels, width, p)
        self.t_embedder = TimeEmbedder(width)
        made = embedders(parts, width)
        self.slots = tuple(made)
        for slot, embedder in made.items():
            self.add_module(slot, embedder)
        self.reads_text = any(embedder.reads_text for embedder in made.values())
        self.attention, self.head_dim = config.attention, width // heads
        self.counts = [*[part.num_tokens for part in parts.tokens], self.grid[0] * self.grid[1]]
        learnable = self.num_learnable = config.learnable_tokens
        self.register_buffer("pos_embed", torch.zeros(1, sum(self.counts) + learnable, width))
        self.register_parameter(
            "learnable_tokens",
            nn.Parameter(torch.empty(1, learnable, width)) if learnable else None,
        )
        self.any_grid = config.rope and not config.rope_table
        self._tables: dict[tuple[tuple[int, int], torch.device], tuple[Tensor, Tensor]] = {}
        shape = (2, self.pos_embed.shape[1], self.head_dim // 2)
        self.register_buffer("rotation", torch.zeros(shape) if config.rope else None)
        self.initial = {
            "pos_embed": constant(lambda: self._places(width)),
            "rotation": constant(lambda: self._rotations(self.grid)),
            "learnable_tokens": normal(0.02),
        }
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                mlp_ratio=config.mlp_ratio,
                backend=config.attention,
                qk_norm=config.qk_norm_kind if config.qk_norm else None,
                text=config.text if self.reads_text else None,
            )
            for _ in range(depth)
        )
        self.projectors = nn.ModuleList(
            Projector(width, part.hidden, part.width) for part in parts.aligned
        )
        self.aligning = [True] * len(parts.aligned)
        self.final_layer = FinalLayer(width, p * p * channels, parts.tokens)
        for part in parts.tokens:
            n = part.slot
            self.add_module(slot_name("cls_projectors2", n), Linear(part.width, width))
            self.add_module(slot_name("wg_norm", n), LayerNorm(width, affine=True))
            if part.has_own_time:
                self.add_module(slot_name("token_time", n), TimeEmbedder(width, last=zeros))
            if part.stats is not None:
                self.add_module(slot_name("token_stats", n), TokenStats(part.width, part.stats))

    def _places(self, width: int, grid: tuple[int, int] | None = None) -> Tensor:
        """Of a learnable token nothing: it can learn what would be added. Of patches nothing where
        attention alone knows their places."""
        tokens = [token_table(part.num_tokens, width) for part in self.parts.tokens]
        learnable = torch.zeros(self.num_learnable, width)
        patches = grid_table(*(grid or self.grid), width)
        return torch.cat([*tokens, learnable, patches * (not self.any_grid)])

    def places_from(self, name: str, table: Tensor) -> Tensor | None:
        """The table of places of a grid of the same aspect, its patches resized to this one."""
        if self.any_grid or name != "pos_embed":
            return None
        rows, columns = self.grid
        own = self._places(table.shape[-1])
        for before in (len(own) - rows * columns, 0, 1):  # its tokens: as here, none, or one
            patches = table[0, before:]
            height = round(sqrt(len(patches) * rows / columns))
            old = (height, height * columns // rows)
            if not patches.any():
                return None
            if height * columns % rows == 0 and old[0] * old[1] == len(patches):
                resized = resized_table(patches.float(), old, self.grid)
                return torch.cat([own[: len(own) - len(resized)], resized])[None]
        return None

    def _rotations(self, grid: tuple[int, int]) -> Tensor:
        before = self.num_learnable + sum(self.counts[:-1])
        return rotations(*grid, self.head_dim, before=before)

    def _places_on(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """`pos_embed` and `rotation` on a grid: the buffers on its own, else made once for each."""
        if grid == self.grid:
            return self.pos_embed, self.rotation
        assert self.any_grid, "a model with a table of places is given its own grid alone"
        device = self.pos_embed.device
        if (grid, device) not in self._tables:
            places = self._places(self.pos_embed.shape[-1], grid)[None]
            self._tables[grid, device] = places.to(device), self._rotations(grid).to(device)
        return self._tables[grid, device]

    def low_precision(self) -> Iterator[nn.Module]:
        yield from self.blocks
        yield from self.projectors
        for embedder in self._embedders():
            yield from embedder.low_precision()

    def attention_choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """What computes the attention of its blocks there, and why; logged."""
        return resolve(
            self.attention,
            device=device,
            dtype=dtype,
            head_dim=self.head_dim,
            has_lengths=self.reads_text,
        )

    def stats_of(self, place: int) -> tuple[Tensor, Tensor]:
        stats = self.get_submodule(slot_name("token_stats", self.parts.tokens[place].slot))
        return cast(Tensor, stats.mean), cast(Tensor, stats.std)

    def stop_aligning(self, index: int) -> None:
        """Leave one target's projector out of the computation, frozen."""
        self.aligning[index] = False
        self.projectors[index].requires_grad_(requires_grad=False)

    def forward(
        self,
        latents: Tensor,
        tokens: tuple[Tensor, ...],
        time: Tensor,
        token_times: tuple[Tensor, ...],
        condition: NamedTuple,
    ) -> Prediction:
        grid = latents.shape[-2] // self.patch_size, latents.shape[-1] // self.patch_size
        counts = [*self.counts[:-1], grid[0] * grid[1]]
        table, rotation = self._places_on(grid)
        places = [*self._embed_tokens(tokens, token_times), self.x_embedder(latents)]
        if self.learnable_tokens is not None:
            places.insert(-1, self.learnable_tokens.expand(len(latents), -1, -1))
        x = torch.cat(places, dim=1) + table  # (B, T, D)
        embedded = embed(self._embedders(), condition)
        c = self.t_embedder(time) + embedded.pooled
        given = (embedded.tokens, embedded.lengths, rotation)
        aligned: list[Tensor | None] = [None] * len(self.aligning)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, c, *given)
            self._align(x, number, counts, aligned)
        *velocities, image = self.final_layer(self._read(x), c, counts)
        image = self._unpatchify(image, grid)
        if self.clean_above is not None:
            image = velocity_of(image, latents, time, least=self.clean_above)
        return Prediction(image, tuple(velocities), tuple(aligned))

    def _embedders(self) -> list[Embedder]:
        return [cast(Embedder, self.get_submodule(slot)) for slot in self.slots]

    def _embed_tokens(
        self, tokens: tuple[Tensor, ...], times: tuple[Tensor, ...]
    ) -> Iterator[Tensor]:
        for part, target, time in zip(self.parts.tokens, tokens, times, strict=True):
            projector = self.get_submodule(slot_name("cls_projectors2", part.slot))
            x: Tensor = self.get_submodule(slot_name("wg_norm", part.slot))(projector(target))
            if part.has_own_time:
                x = x + self.get_submodule(slot_name("token_time", part.slot))(time).unsqueeze(1)
            yield x

    def _align(
        self, x: Tensor, number: int, counts: list[int], aligned: list[Tensor | None]
    ) -> None:
        """Project the states after block `number` for the targets aligned there."""
        for index, part in enumerate(self.parts.aligned):
            if part.depth == number and self.aligning[index]:
                *tokens, patches = self._read(x).split(counts, dim=1)
                own = [] if part.entangled is None else [tokens[part.entangled]]
                states = torch.cat([*own, patches] if part.has_patches else own, dim=1)
                aligned[index] = self.projectors[index](states)

    def _read(self, x: Tensor) -> Tensor:
        """The states that heads and projectors read: those of tokens and patches."""
        if self.num_learnable == 0:
            return x
        start = sum(self.counts[:-1])
        return torch.cat([x[:, :start], x[:, start + self.num_learnable :]], dim=1)

    def _unpatchify(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, p p C) to (B, C, H, W)."""
        (rows, columns), p = grid, self.patch_size
        x = x.reshape(-1, rows, columns, p, p, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, rows * p, columns * p)


def build(config: Config, parts: Parts) -> SiT:
    """The model on the default device; under `torch.device("meta")` it allocates nothing."""
    for name, side in zip(("height", "width"), parts.latent_shape[1:], strict=True):
        if side % config.patch_size:
            raise Invalid(
                "model.patch_size",
                f"divides the {name} of the latents",
                found=f"{config.patch_size} for {side}",
                fix="Choose another patch size or image size.",
            )
    for part in parts.aligned:
        if part.entangled is None and not part.has_patches:
            raise Invalid(
                "align",
                "a target is aligned through its patches or its entangled tokens",
                found="a target without patches that is not entangled",
                fix="Entangle it as well, or remove it from align.",
            )
        if not 1 <= part.depth <= config.shape[0]:
            raise Invalid(
                "align.depth",
                f"is a block of the model, 1 to {config.shape[0]}",
                found=part.depth,
                fix="Choose a block that exists (the paper: 4 for B, 8 for L and XL).",
            )
    return SiT(config, parts)
