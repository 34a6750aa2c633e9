"""The trainable half of a conditioner, which lives in the backbone: its contract, and that of text.

B batch, L E text tokens and width, P width of the pooled text, D model width.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from regscale.layers.initial import zeros
from regscale.layers.linear import LayerNorm, Linear, RMSNorm
from regscale.layers.transformer import Attention, Mlp
from regscale.types import Embedded, Text

HEAD_DIM = 64  # about that of the refiner's heads


class Embedder(nn.Module):
    """A condition (of the conditioner's own type) to `Embedded`."""

    reads_text = False  # whether it gives tokens

    def forward(self, condition: Any) -> Embedded:
        raise NotImplementedError

    def low_precision(self) -> Iterator[nn.Module]:
        """The parts whose matrix products run in the engine's compute dtype."""
        return iter(())


class RefinerBlock(nn.Module):
    """A transformer block in which all tokens of a text see each other; the residual is fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = next(n for n in range(max(1, width // HEAD_DIM), 0, -1) if width % n == 0)
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads, backend="auto", qk_norm="rms")
        self.norm2 = RMSNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), lengths=lengths)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """A pooled text (B, P) to what it adds to the adaLN vector (B, D): nothing at the start."""

    def __init__(self, pooled_width: int, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(pooled_width, affine=False)  # encoders differ in scale by hundreds
        self.mlp = nn.Sequential(
            Linear(pooled_width, width), nn.SiLU(), Linear(width, width, weight=zeros)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        return self.mlp(self.norm(pooled))  # type: ignore[no-any-return]


class TextEmbedder(Embedder):
    """RMSNorm, a linear layer and refiner blocks, which give the tokens of an encoder that looks
    back alone the context that follows them (as in SANA, arXiv 2410.10629, and Lumina)."""

    reads_text = True

    def __init__(self, text_width: int, pooled_width: int, width: int, *, depth: int = 2) -> None:
        super().__init__()
        self.norm = RMSNorm(text_width)
        self.proj = Linear(text_width, width)
        self.refiner = nn.ModuleList(RefinerBlock(width) for _ in range(depth))
        self.norm_final = LayerNorm(width)
        self.pooled = Pooled(pooled_width, width)

    def forward(self, condition: Text) -> Embedded:
        x = self.proj(self.norm(condition.tokens))  # (B, L, D)
        for block in self.refiner:
            x = block(x, condition.lengths)
        return Embedded(self.pooled(condition.pooled), self.norm_final(x), condition.lengths)

    def low_precision(self) -> Iterator[nn.Module]:
        yield from self.refiner
