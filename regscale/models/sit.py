"""SiT with entangled tokens: a transformer whose sequence is [tokens | patches] (REG, section 3).

Parameter names are those of the published checkpoints. B batch, T = sum K + N sequence, D width.
Learnable tokens, where there are any, stand between tokens and patches and are counted in T.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.config import Invalid
from regscale.layers.attention import Backend, Choice, attention, resolve
from regscale.layers.initial import constant, normal, zeros
from regscale.layers.linear import LayerNorm, Linear, PatchEmbed, Projector
from regscale.layers.position import grid_table, time_features, token_table
from regscale.models import Backbone, Parts, TokenPart
from regscale.types import Embedded, Prediction

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Depth, width and heads are those of `size` unless given."""

    size: Literal["S", "B", "L", "XL"] = "XL"
    depth: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    patch_size: int = 2
    mlp_ratio: float = 4.0
    qk_norm: bool = False
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(depth, hidden_size, num_heads)."""
        depth, width, heads = SIZES[self.size]
        return (
            depth if self.depth is None else self.depth,
            width if self.hidden_size is None else self.hidden_size,
            heads if self.num_heads is None else self.num_heads,
        )


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, the same for all places of a sample."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update, the same gate for all places of a sample."""
    return x + gate.unsqueeze(1) * update


class Attention(nn.Module):
    """Self-attention, optionally with normalised queries and keys."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, backend: Backend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = Linear(width, 3 * width)
        self.q_norm = LayerNorm(width // heads, eps=1e-5, affine=True) if qk_norm else None
        self.k_norm = LayerNorm(width // heads, eps=1e-5, affine=True) if qk_norm else None
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        mixed = attention(q, k, v, backend=self.backend)
        mixed = mixed.transpose(1, 2).reshape(B, T, D)
        return self.proj(mixed)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with the tanh form of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer block with adaLN-Zero conditioning (DiT, section 3.2); the residual is fp32."""

    def __init__(self, width: int, heads: int, config: Config) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, qk_norm=config.qk_norm, backend=config.attention)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, round(width * config.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width, weight=zeros))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        modulation: Tensor = self.adaLN_modulation(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
        x = add_gated(x, gate1, self.attn(modulate(self.norm1(x), shift1, scale1)))
        return add_gated(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class TimeEmbedder(nn.Module):
    """Times (B,) to vectors (B, D), in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rule = normal(0.02)
        self.mlp = nn.Sequential(
            Linear(256, width, weight=rule), nn.SiLU(), Linear(width, width, weight=rule)
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_features(t))  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    """Hidden states to velocities of patches and of each target's tokens."""

    def __init__(self, width: int, patch_values: int, tokens: tuple[TokenPart, ...]) -> None:
        super().__init__()
        self.norm_final = LayerNorm(width)
        self.linear = Linear(width, patch_values, weight=zeros)
        self.names = tuple(slot_name("linear_cls", part.slot) for part in tokens)
        for name, part in zip(self.names, tokens, strict=True):
            self.add_module(name, Linear(width, part.width, weight=zeros))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width, weight=zeros))

    def forward(self, x: Tensor, c: Tensor, counts: list[int]) -> tuple[Tensor, ...]:
        """Velocities of each target's tokens and, last, of the patches; `counts` are their
        numbers of places."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        states = modulate(self.norm_final(x), shift, scale).split(counts, dim=1)
        heads = [*[self.get_submodule(name) for name in self.names], self.linear]
        return tuple(head(state) for head, state in zip(heads, states, strict=True))


def slot_name(published: str, slot: int) -> str:
    """The published parameter name for slot 0, the same with the slot's number for others."""
    return published if slot == 0 else f"{published}_slot{slot}"


class SiT(Backbone):
    """Velocities of latents and tokens, and hidden states projected for alignment."""

    reads_text = False
    pos_embed: Tensor  # (1, T, D)
    learnable_tokens: nn.Parameter | None  # (1, learnable_tokens, D)

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__()
        depth, width, heads = config.shape
        channels, height, columns = parts.latent_shape
        p = self.patch_size = config.patch_size
        self.channels, self.grid = channels, (height // p, columns // p)
        self.parts = parts
        self.x_embedder = PatchEmbed(channels, width, p)
        self.t_embedder = TimeEmbedder(width)
        self.add_module(parts.embedder_slot, parts.embedder(width))
        self.attention, self.head_dim = config.attention, width // heads
        self.counts = [*[part.num_tokens for part in parts.tokens], self.grid[0] * self.grid[1]]
        learnable = self.num_learnable = config.learnable_tokens
        self.register_buffer("pos_embed", torch.zeros(1, sum(self.counts) + learnable, width))
        self.register_parameter(
            "learnable_tokens",
            nn.Parameter(torch.empty(1, learnable, width)) if learnable else None,
        )
        places = constant(lambda: self._places(width))
        self.initial = {"pos_embed": places, "learnable_tokens": normal(0.02)}
        self.blocks = nn.ModuleList(Block(width, heads, config) for _ in range(depth))
        self.projectors = nn.ModuleList(
            Projector(width, part.hidden, part.width) for part in parts.aligned
        )
        self.aligning = [True] * len(parts.aligned)
        self.final_layer = FinalLayer(width, p * p * channels, parts.tokens)
        for part in parts.tokens:
            self.add_module(slot_name("cls_projectors2", part.slot), Linear(part.width, width))
            self.add_module(slot_name("wg_norm", part.slot), LayerNorm(width, affine=True))

    def _places(self, width: int) -> Tensor:
        """Of a learnable token nothing: it can learn what would be added."""
        tokens = [token_table(part.num_tokens, width) for part in self.parts.tokens]
        learnable = torch.zeros(self.num_learnable, width)
        return torch.cat([*tokens, learnable, grid_table(*self.grid, width)])

    def low_precision(self) -> Iterator[nn.Module]:
        yield from self.blocks
        yield from self.projectors

    def attention_choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """What computes the attention of its blocks there, and why; logged."""
        return resolve(
            self.attention,
            device=device,
            dtype=dtype,
            head_dim=self.head_dim,
            has_lengths=self.reads_text,
        )

    def stop_aligning(self, index: int) -> None:
        """Leave one target's projector out of the computation, frozen."""
        self.aligning[index] = False
        self.projectors[index].requires_grad_(requires_grad=False)

    def forward(
        self,
        latents: Tensor,
        tokens: tuple[Tensor, ...],
        time: Tensor,
        token_times: tuple[Tensor, ...],  # noqa: ARG002
        condition: NamedTuple,
    ) -> Prediction:
        places = [*self._embed_tokens(tokens), self.x_embedder(latents)]
        if self.learnable_tokens is not None:
            places.insert(-1, self.learnable_tokens.expand(len(latents), -1, -1))
        x = torch.cat(places, dim=1) + self.pos_embed  # (B, T, D)
        embedded: Embedded = self.get_submodule(self.parts.embedder_slot)(condition)
        c = self.t_embedder(time) + embedded.pooled
        aligned: list[Tensor | None] = [None] * len(self.aligning)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, c)
            self._align(x, number, aligned)
        *velocities, image = self.final_layer(self._read(x), c, self.counts)
        return Prediction(self._unpatchify(image), tuple(velocities), tuple(aligned))

    def _embed_tokens(self, tokens: tuple[Tensor, ...]) -> Iterator[Tensor]:
        for part, target in zip(self.parts.tokens, tokens, strict=True):
            projector = self.get_submodule(slot_name("cls_projectors2", part.slot))
            yield self.get_submodule(slot_name("wg_norm", part.slot))(projector(target))

    def _align(self, x: Tensor, number: int, aligned: list[Tensor | None]) -> None:
        """Project the states after block `number` for the targets aligned there."""
        for index, part in enumerate(self.parts.aligned):
            if part.depth == number and self.aligning[index]:
                *tokens, patches = self._read(x).split(self.counts, dim=1)
                own = [] if part.entangled is None else [tokens[part.entangled]]
                states = torch.cat([*own, patches] if part.has_patches else own, dim=1)
                aligned[index] = self.projectors[index](states)

    def _read(self, x: Tensor) -> Tensor:
        """The states that heads and projectors read: those of tokens and patches."""
        if self.num_learnable == 0:
            return x
        start = sum(self.counts[:-1])
        return torch.cat([x[:, :start], x[:, start + self.num_learnable :]], dim=1)

    def _unpatchify(self, x: Tensor) -> Tensor:
        """(B, N, p p C) to (B, C, H, W)."""
        (rows, columns), p = self.grid, self.patch_size
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
