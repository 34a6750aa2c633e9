"""The embedders of a condition, and one `Embedded` of several conditions that hold together."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from regscale.layers.embedder import Embedder
from regscale.models import Parts
from regscale.types import Embedded, Several


def embedders(parts: Parts, width: int) -> dict[str, Embedder]:
    """By the attribute of the model, in the order of the condition's parts."""
    made = parts.embedder(width)
    several = made.items() if isinstance(made, nn.ModuleDict) else [(parts.embedder_slot, made)]
    return {slot: cast(Embedder, module) for slot, module in several}


def embed(modules: Sequence[Embedder], condition: Any) -> Embedded:
    """The pooled vectors of all parts added, and their tokens one text after another."""
    given = condition.parts if isinstance(condition, Several) else (condition,)
    made = [module(part) for module, part in zip(modules, given, strict=True)]
    first, *others = made
    pooled: Tensor = sum((each.pooled for each in others), first.pooled)
    tokens, lengths = None, None
    for each in made:
        if each.tokens is not None and each.lengths is not None:
            if tokens is None or lengths is None:
                tokens, lengths = each.tokens, each.lengths
            else:
                tokens, lengths = _joined(tokens, lengths, each.tokens, each.lengths)
    return Embedded(pooled, tokens, lengths)


def _joined(a: Tensor, a_lengths: Tensor, b: Tensor, b_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Two right-padded texts as one: the tokens of `b` follow those of `a` at once."""
    tokens = torch.cat([a, b], dim=1)  # (B, La + Lb, D)
    padding = torch.cat([_padding(a, a_lengths), _padding(b, b_lengths)], dim=1)
    order = padding.to(torch.int8).argsort(dim=1, stable=True)
    return tokens.gather(1, order[..., None].expand_as(tokens)), a_lengths + b_lengths


def _padding(tokens: Tensor, lengths: Tensor) -> Tensor:
    """True where a token is padding: (B, L)."""
    return torch.arange(tokens.shape[1], device=lengths.device) >= lengths[:, None]
