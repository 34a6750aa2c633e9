"""Attention and MLP of which the blocks of backbones and embedders are made.

B batch, T places, D width, L text tokens.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regscale.layers.attention import Backend, attention
from regscale.layers.initial import zeros
from regscale.layers.linear import LayerNorm, Linear, RMSNorm
from regscale.layers.position import rotate

QkNorm = Literal["layer", "rms"]
TextMode = Literal["joint", "gated"]


class Attention(nn.Module):
    """Self-attention, optionally with normalised queries and keys, and with a text to read.

    A text adds keys and values of its own. `joint`: one softmax over both. `gated`: attn(x) +
    tanh(g) attn(text) with g = 0 for each head at the start (as in Flamingo, arXiv 2204.14198,
    section 2.2), so that a model that was trained without text starts unchanged.
    """

    txt_gate: nn.Parameter | None  # (heads,)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        backend: Backend,
        qk_norm: QkNorm | None = None,
        text: TextMode | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = Linear(width, 3 * width)
        self.q_norm = _head_norm(qk_norm, width // heads)
        self.k_norm = _head_norm(qk_norm, width // heads)
        self.proj = Linear(width, width)
        self.txt_kv = None if text is None else Linear(width, 2 * width)
        gate = nn.Parameter(torch.empty(heads)) if text == "gated" else None
        self.register_parameter("txt_gate", gate)
        self.initial = {"txt_gate": zeros}

    def forward(
        self,
        x: Tensor,  # (B, T, D)
        *,
        lengths: Tensor | None = None,  # (B,) of the text where there is one, else of x
        text: Tensor | None = None,  # (B, L, D)
        rotation: Tensor | None = None,  # a table of `rotations` for the T places
    ) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if text is None:
            mixed = attention(q, k, v, key_lengths=lengths, backend=self.backend)
        else:
            assert lengths is not None, "a text has lengths"
            mixed = self._with_text(q, k, v, text, lengths)
        mixed = mixed.transpose(1, 2).reshape(B, T, D)
        return self.proj(mixed)  # type: ignore[no-any-return]

    def _with_text(self, q: Tensor, k: Tensor, v: Tensor, text: Tensor, lengths: Tensor) -> Tensor:
        assert self.txt_kv is not None, "the model was made to read text"
        B, L, D = text.shape
        shape = (B, L, 2, self.heads, D // self.heads)
        text_k, text_v = self.txt_kv(text).reshape(shape).permute(2, 0, 3, 1, 4)
        if self.k_norm is not None:
            text_k = self.k_norm(text_k).to(v.dtype)
        if self.txt_gate is None:
            k, v = torch.cat([k, text_k], dim=2), torch.cat([v, text_v], dim=2)
            return attention(
                q, k, v, key_lengths=lengths + q.shape[2], backend=self.backend
            )  # text stands last, right-padded: the mask is a length
        own = attention(q, k, v, backend=self.backend)
        read = attention(q, text_k, text_v, key_lengths=lengths, backend=self.backend)
        gate = self.txt_gate.to(own.dtype).float().tanh().to(own.dtype)  # rounded as weights are
        return own + gate.reshape(-1, 1, 1) * read


def _head_norm(kind: QkNorm | None, head_dim: int) -> nn.Module | None:
    if kind is None:
        return None
    return RMSNorm(head_dim) if kind == "rms" else LayerNorm(head_dim, eps=1e-5, affine=True)


class Mlp(nn.Module):
    """Two linear layers with the tanh form of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]
