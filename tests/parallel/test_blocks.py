"""What compiled blocks compute again in their backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from regscale.parallel._blocks import prepare


class Block(nn.Module):
    """Two products."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(nn.functional.gelu(self.a(x)))).tanh()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("recompute", "every", "again"),
    [("none", 1, 0), ("selective", 1, 0), ("full", 1, 4), ("full", 2, 2)],
)
def test_selective_keeps_products_where_blocks_are_compiled(
    monkeypatch: pytest.MonkeyPatch, recompute: Any, every: int, again: int
) -> None:
    """Outside of a compiled block it would see none of them, and compute all of them again."""
    partitioned = partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", partitioned)
    torch._dynamo.reset()
    model, x = Model(), torch.ones(4, 8)
    prepare(model, compiled=True, recompute=recompute, every=every)
    model(x).sum().backward()
    loss = model(x).sum()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        loss.backward()
    counts = {event.key: event.count for event in seen.key_averages()}
    assert counts["aten::mm"] > 0
    assert counts.get("aten::addmm", 0) == again  # a backward has mm alone
