"""What each process of an elastic test does: load a checkpoint, check, train, save."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regscale.checkpoint import Record, newest
from regscale.cluster import Cluster
from regscale.layers.initial import normal, ones, zeros
from regscale.layers.linear import Linear
from regscale.parallel import OptimizerConfig
from regscale.training.ema import Ema
from regscale.training.saver import Saver
from regscale.training.state import pieces, restore

WIDTH, BATCH = 7, 12  # the batch divides over 1, 2, 3 and 4 ranks, the width over none but one
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
OPTIONS: dict[str, dict[str, Any]] = {
    "single": {},
    "ddp": {"find_unused": True},
    "fsdp2": {},
    "hsdp": {"shard_group": 2},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
}
PLUGINS = {"hsdp": "fsdp2", "zero1": "zero", "zero2": "zero", "zero3": "zero"}


class Block(nn.Module):
    """With a frozen and a never used parameter, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(WIDTH, WIDTH, weight=normal(0.5))
        self.frozen = nn.Parameter(torch.empty(3, WIDTH), requires_grad=False)
        self.unused = nn.Parameter(torch.empty(5))
        self.register_buffer("scale", torch.empty(2))
        self.initial = {"frozen": normal(0.5), "unused": normal(1.0), "scale": ones}

    def forward(self, x: Tensor) -> Tensor:
        return (
            x
            + torch.tanh(self.linear(x)) * self.scale[0]
            + (x @ self.frozen.T).sum(-1, keepdim=True)
        )


class Toy(nn.Module):
    """The smallest model that engines take."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(WIDTH))
        self.initial = {"gain": normal(1.0)}
        self.blocks = nn.ModuleList([Block(), Block()])
        self.out = Linear(WIDTH, 1, weight=zeros)

    def low_precision(self) -> Iterator[nn.Module]:
        yield from self.blocks

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x * self.gain)
        out: Tensor = self.out(x)
        return out


def build(cluster: Cluster, kind: str, seed: int = 0) -> tuple[Any, Ema]:
    plugin: Any = import_module(f"regscale.parallel.{PLUGINS.get(kind, kind)}")
    if kind == "zero3":  # DeepSpeed numbers parameters per process, and workers differ in age
        import_module("deepspeed").zero.Init.param_id = 0
    with torch.device("meta"):
        model = Toy()
    engine = plugin.build(
        plugin.Config(**OPTIONS[kind]), model, optimizer=OPTIMIZER, seed=seed, cluster=cluster
    )
    return engine, Ema(engine.shards(), (0.5, 0.9))


def update(cluster: Cluster, engine: Any, ema: Ema, number: int) -> None:
    """One update on the `number`-th batch of all ranks together."""
    g = torch.Generator().manual_seed(number)
    batch = torch.randn(BATCH, WIDTH, generator=g)
    own = batch.tensor_split(cluster.world_size)[cluster.rank]
    with engine.micro_batch(last=True):
        engine.backward((engine.forward(own).mean(1) - own.sum(1)).square().mean())
    engine.step()
    ema.update()


def whole(cluster: Cluster, engine: Any, ema: Ema) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, put together without one."""
    own = [(p.name, p.shape, p.start, p.stop, p.values.clone()) for p in pieces(engine, ema)]
    state: dict[str, Tensor] = {}
    seen: dict[str, int] = {}
    for part in cluster.gather(own):
        for name, shape, start, stop, values in part:
            flat = state.setdefault(name, torch.full((prod(shape),), float("nan")))
            flat[start:stop] = values
            seen[name] = seen.get(name, 0) + stop - start
    assert all(seen[name] == flat.numel() for name, flat in state.items())
    return state


def ranges_agree(cluster: Cluster, engine: Any, ema: Ema, state: dict[str, Tensor]) -> bool:
    """Whether what a rank holds without owning it is the same as well."""
    held = [(f"model/{s.name}", s.start, s.stop, s.master) for s in engine.shards()]
    held += [
        (f"ema/{decay}/{s.name}", s.start, s.stop, average[s.name])
        for decay, average in ema.averages.items()
        for s in engine.shards()
    ]
    equal = all(torch.equal(state[name][a:b], values) for name, a, b, values in held)
    return all(cluster.gather(equal))


def work(
    cluster: Cluster, kind: str, source: str | None, target: str | None, updates: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Load from `source` where given, train, save to `target` where given.

    Returns the state after loading and after training.
    """
    engine, ema = build(cluster, kind, seed=0 if source is None else 1)
    done = 0
    if source is not None:
        reader = newest(Path(source), cluster)
        assert reader is not None
        restore(reader, engine, ema)
        engine.restore(reader.progress["engine"])
        done = reader.step
    loaded = whole(cluster, engine, ema)
    assert ranges_agree(cluster, engine, ema, loaded)
    for number in range(done, done + updates):
        update(cluster, engine, ema, number)
    trained = whole(cluster, engine, ema)
    if target is not None:
        record = Record(
            step=done + updates, samples=0, config={}, progress={"engine": engine.progress()}
        )
        with Saver(Path(target), cluster, keep_last=1, keep_every=0, max_writers=3) as saver:
            saver.save(pieces(engine, ema), record)
            assert saver.wait(strict=True) == done + updates
    return loaded, trained


def owned(cluster: Cluster, kind: str) -> list[tuple[str, int, int, int]]:
    """The ranges that this rank writes, and the bytes of each."""
    given = list(pieces(*build(cluster, kind)))
    return [(p.name, p.start, p.stop, p.values.nbytes) for p in given if p.start < p.stop]
