"""The block of SiT: attention and MLP, modulated by the time and the condition.

B batch, T sequence, L text tokens, D width.
"""

from torch import Tensor, nn

from regscale.layers.attention import Backend
from regscale.layers.initial import zeros
from regscale.layers.linear import LayerNorm, Linear
from regscale.layers.transformer import Attention, Mlp, QkNorm, TextMode
from regscale.models._sit_parts import add_gated, modulate


class Block(nn.Module):
    """A transformer block with adaLN-Zero conditioning (DiT, section 3.2); the residual is fp32."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        backend: Backend,
        qk_norm: QkNorm | None,
        text: TextMode | None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, backend=backend, qk_norm=qk_norm, text=text)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, round(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width, weight=zeros))

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        c: Tensor,  # (B, D)
        text: Tensor | None = None,  # (B, L, D)
        lengths: Tensor | None = None,  # (B,) of the text
        rotation: Tensor | None = None,  # (2, T, half a head's width)
    ) -> Tensor:
        modulation: Tensor = self.adaLN_modulation(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
        mixed = self.attn(
            modulate(self.norm1(x), shift1, scale1), text=text, lengths=lengths, rotation=rotation
        )
        x = add_gated(x, gate1, mixed)
        return add_gated(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))
