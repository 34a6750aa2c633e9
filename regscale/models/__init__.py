"""Backbones: a kind is a file here with `Config` and `build(config, parts) -> Backbone`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from regscale.types import Prediction

ReadStats = Callable[[], tuple[Tensor, Tensor]]  # mean and std of each dimension, (R,)


@dataclass(frozen=True, slots=True)
class TokenPart:
    """An entangled target as the backbone sees it."""

    slot: int  # 0 uses the published parameter names
    num_tokens: int  # K
    width: int  # R
    has_own_time: bool = False  # its time differs from the image's: an embedding of it is added
    stats: ReadStats | None = None  # of its tokens, which the backbone keeps with its weights


@dataclass(frozen=True, slots=True)
class AlignPart:
    """An aligned target as the backbone sees it."""

    depth: int  # hidden states after this many blocks
    width: int  # R
    hidden: int  # width of the projector's hidden layers
    entangled: int | None  # its place among the entangled targets: their hidden states come first
    has_patches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What surrounds a backbone: widths come from here and are never configured twice."""

    latent_shape: tuple[int, int, int]  # (C, H, W)
    tokens: tuple[TokenPart, ...]
    aligned: tuple[AlignPart, ...]
    embedder_slot: str  # the attribute, so the parameter names, of the condition's embedder
    embedder: Callable[[int], nn.Module]  # width -> `Embedder`; of several, a ModuleDict by slot


class Backbone(nn.Module):
    """The contract of a backbone: velocities and projected hidden states of a noisy batch."""

    blocks: nn.ModuleList
    reads_text: bool
    grid: tuple[int, int]  # rows and columns of patches of `Parts.latent_shape`
    any_grid: bool  # whether weights learned on one grid know places of another, so take any
    places: tuple[str, ...]  # buffers that are computed for the grid

    def forward(
        self,
        latents: Tensor,  # (B, C, H, W)
        tokens: tuple[Tensor, ...],  # of (B, K, R)
        time: Tensor,  # (B,)
        token_times: tuple[Tensor, ...],  # of (B,)
        condition: NamedTuple,
    ) -> Prediction:
        raise NotImplementedError

    def places_from(self, name: str, table: Tensor) -> Tensor | None:
        """One of `places` from what a model on this or another grid has; None: it is computed."""
        raise NotImplementedError

    def stats_of(self, place: int) -> tuple[Tensor, Tensor]:
        """Mean and std (R,) of the entangled target at this place, which came with `stats`."""
        raise NotImplementedError

    def stop_aligning(self, index: int) -> None:
        """Leave one aligned target's projector out of the computation, frozen."""
        raise NotImplementedError

    def low_precision(self) -> Iterator[nn.Module]:
        """The parts whose matrix products run in the engine's compute dtype."""
        raise NotImplementedError
