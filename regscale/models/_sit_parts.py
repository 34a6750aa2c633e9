"""Parts of SiT around its blocks: modulation, times, and the heads of the velocities."""

from torch import Tensor, nn

from regscale.layers.initial import Rule, normal, zeros
from regscale.layers.linear import LayerNorm, Linear
from regscale.layers.position import time_features
from regscale.models import TokenPart


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, the same for all places of a sample."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update, the same gate for all places of a sample."""
    return x + gate.unsqueeze(1) * update


class TimeEmbedder(nn.Module):
    """Times (B,) to vectors (B, D), in fp32. `last` is the rule of the last weight."""

    def __init__(self, width: int, *, last: Rule | None = None) -> None:
        super().__init__()
        rule = normal(0.02)
        self.mlp = nn.Sequential(
            Linear(256, width, weight=rule), nn.SiLU(), Linear(width, width, weight=last or rule)
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
