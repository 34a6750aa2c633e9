"""What the tests of engines run in each process."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regscale import assemble
from regscale.cluster import Cluster
from regscale.config import load
from regscale.errors import RegscaleError
from regscale.layers.linear import Linear
from regscale.recipe import RunConfig
from regscale.training import Job, train
from regscale.training.loop import _stop_aligning, open_loader, update
from regscale.types import Batch

Values = dict[str, Any]


def config_of(file: str, overrides: tuple[str, ...]) -> RunConfig:
    return load(RunConfig, Path(file), list(overrides))


def job_of(file: str, overrides: tuple[str, ...]) -> Job:
    """A run under the pool: no model of the previous one is left."""
    gc.collect()
    return assemble.job(config_of(file, overrides))


def trained(
    cluster: Cluster, file: str, overrides: tuple[str, ...], steps: int, *, order: bool = False
) -> Values:
    """Losses and norms of `steps` updates, and weights, averages and moments after them; with
    `order` the samples of each batch are dealt out to the ranks in another order."""
    job = job_of(file, overrides)
    start = digest(job.engine.full_state())
    feed = reordered(job) if order else open_loader(job, 0)
    losses, norms, first = [], [], {}
    for _ in range(steps):
        values, result = update(job, next(feed))
        losses.append(float(cluster.mean(values[0])))
        norms.append(float(result.grad_norm))
        first = first or state_of(job)
    feed.close()
    state = state_of(job)
    with job.engine.weights(job.ema.weights(0.9)):
        average = state_of(job)
    assert same(state, state_of(job)), "weights come back after a swap"
    return {
        "losses": losses,
        "norms": norms,
        "start": start,
        "first": first,
        "state": state,
        "ema": average,
        "progress": job.engine.progress(),
    }


def rebuilt(
    cluster: Cluster, file: str, overrides: tuple[str, ...], others: list[tuple[str, ...]]
) -> Values:
    """Whether a run is the same after other engines in its process, and what is left of them."""
    before = trained(cluster, file, overrides, 2)
    for other in others:
        trained(cluster, file, (*overrides, *other), 2)
    after = trained(cluster, file, overrides, 2)
    return {
        "losses": before["losses"] == after["losses"],
        "state": same(before["state"], after["state"]),
        "linear": torch.nn.functional.linear is torch._C._nn.linear,
        "not deterministic": not torch.are_deterministic_algorithms_enabled(),
        "fp32": torch.get_default_dtype() == torch.float32,
    }


def refusal(cluster: Cluster, file: str, overrides: tuple[str, ...]) -> str:
    """What a user reads."""
    try:
        assemble.job(config_of(file, overrides))
    except RegscaleError as error:
        return str(error)
    return "accepted"


def poisoned(
    cluster: Cluster, file: str, overrides: tuple[str, ...], bad: dict[int, float]
) -> Values:
    """Six updates, where the loss of the last rank is multiplied by `bad[step]`."""
    job = job_of(file, overrides)
    feed, backward = open_loader(job, 0), job.engine.backward
    last = cluster.rank == cluster.world_size - 1
    applied, unchanged, counts, scales = [], [], [], []
    for step in range(6):
        factor = bad.get(step, 1.0) if last else 1.0
        job.engine.backward = lambda loss, factor=factor: backward(loss * factor)
        before = ranges(job, averages=False)
        _, result = update(job, next(feed))
        applied.append(bool(result.applied))
        unchanged.append(same(before, ranges(job, averages=False)))
        progress = job.engine.progress()
        counts.append(set(progress["optimizer_steps"].values()))
        scales.append(progress["loss_scale"] and progress["loss_scale"][0])
    del job.engine.backward
    feed.close()
    return {
        "applied": applied,
        "unchanged": unchanged,
        "counts": counts,
        "scales": scales,
        "finite": all(bool(value.isfinite().all()) for value in ranges(job).values()),
    }


def stopped(cluster: Cluster, file: str, overrides: tuple[str, ...]) -> Values:
    """Five updates; alignment ends as the config says. What the projector was at that step, and
    whether it and the others are that at the end, on this rank."""
    job = job_of(file, overrides)
    feed, held, moved, losses = open_loader(job, 0), {}, {}, []
    for step in range(5):
        was = job.engine.model.aligning[0]
        _stop_aligning(job, step)
        if was and not job.engine.model.aligning[0]:
            held, moved = _projector(job, of=True), _projector(job, of=False)
        values, _ = update(job, next(feed))
        losses.append(float(cluster.mean(values[0])))
    feed.close()
    after = _projector(job, of=False)
    left = [key for key, value in moved.items() if value.numel() and torch.equal(after[key], value)]
    return {
        "held": len(held),
        "kept": same(held, _projector(job, of=True)),
        "left": left,
        "losses": losses,
        "state": state_of(job),
    }


def idle(cluster: Cluster, file: str, overrides: tuple[str, ...]) -> Values:
    """Three updates of a model in which two layers take no part: of all that is trained, whether
    its weights, moments and count on this rank are those of the start."""
    make = assemble.pieces

    def with_idle(config: RunConfig) -> Any:
        parts = make(config)
        with torch.device("meta"):
            parts.model.idle, parts.model.blocks[0].idle = Linear(3, 5), Linear(5, 7)
        return parts

    assemble.pieces = with_idle
    try:
        job = job_of(file, overrides)
    finally:
        assemble.pieces = make
    before, feed = ranges(job, averages=False), open_loader(job, 0)
    for _ in range(3):
        update(job, next(feed))
    feed.close()
    after, counts = ranges(job, averages=False), job.engine.progress()["optimizer_steps"]
    return {
        shard.name: counts[shard.name] == 0
        and all(torch.equal(before[key], after[key]) for key in before if key.endswith(shard.name))
        for shard in job.engine.shards()
        if shard.trainable and shard.stop > shard.start
    }


def run(cluster: Cluster, file: str, overrides: tuple[str, ...]) -> int:
    """What the train command does, to the last step: which step that was."""
    return train(job_of(file, overrides)).step


def _projector(job: Job, *, of: bool) -> dict[str, Tensor]:
    """Weights, moments and averages of the projectors, or of all the others; buffers not."""
    trained = dict(job.engine.model.named_parameters())
    return {
        key: value
        for key, value in ranges(job).items()
        if key.split("/")[1] in trained and key.split("/")[1].startswith("projectors.") == of
    }


def drawn(cluster: Cluster, file: str, overrides: tuple[str, ...]) -> Values:
    """Samples of the averaged weights after three updates, and the state after three more; and
    the same state without samples."""
    states, sample = [], None
    for draws in (True, False):
        job = job_of(file, overrides)
        sampler = replace(
            assemble._sampler(assemble.pieces(config_of(file, overrides)), cluster.device),
            model=job.engine.model,
        )
        condition = job.towers.conditioner.parse([job.towers.conditioner.examples()[0]] * 2)
        guidance = config_of(file, overrides).sampling.guidance
        feed = open_loader(job, 0)
        for step in range(6):
            if draws and step == 3:
                with job.engine.weights(job.ema.weights(0.9)):
                    sample = sampler.state(condition, range(2), guidance).latents
            update(job, next(feed))
        feed.close()
        states.append(ranges(job))
    return {"sample": sample, "undisturbed": same(*states)}


def memory(cluster: Cluster, file: str, overrides: tuple[str, ...]) -> Values:
    """Bytes of this rank's weights, gradients, moments and averages after an update."""
    job = job_of(file, overrides)
    feed = open_loader(job, 0)
    update(job, next(feed))
    shards = list(job.engine.shards())
    trainable = [shard for shard in shards if shard.trainable]
    masters = total_bytes([shard.master for shard in trainable])
    moments = total_bytes([value for shard in trainable for value in shard.optimizer.values()])
    averages = {d: [a[s.name] for s in trainable] for d, a in job.ema.averages.items()}
    weights = total_bytes([*[s.master for s in trainable], *parameters(job.engine)])
    seen: list[int] = []
    step = job.engine.step

    def counting() -> Any:
        seen.append(total_bytes(gradients(job.engine)))
        return step()

    job.engine.step = counting
    update(job, next(feed))
    feed.close()
    return {
        "shapes": {shard.name: shard.shape for shard in trainable},
        "masters": masters,
        "weights": weights,
        "moments": moments,
        "averages": {decay: total_bytes(values) for decay, values in averages.items()},
        "gradients": seen[0],
    }


def parameters(engine: Any) -> list[Tensor]:
    """Whatever an engine keeps of the trained weights between updates."""
    kept: list[Tensor] = []
    for p in engine.model.parameters():
        local = p.to_local() if hasattr(p, "to_local") else p.data
        kept += [local, *([p.ds_tensor.data] if hasattr(p, "ds_tensor") else [])]
    return kept


def gradients(engine: Any) -> list[Tensor]:
    """Whatever an engine keeps of the gradients between a backward and an update."""
    kept = [p.grad for p in engine.model.parameters() if p.grad is not None]
    kept = [g.to_local() if hasattr(g, "to_local") else g for g in kept]
    zero = getattr(engine, "_zero", None)
    if zero is not None:
        groups = zero.averaged_gradients.values()
        kept += [g for group in groups if group for g in group if g is not None]
        kept += [engine._flat.grad] if engine._flat.grad is not None else []
    return kept


def total_bytes(tensors: list[Tensor]) -> int:
    """Of the storages below, each once, with whatever padding they have."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(held.values())


def gathered(cluster: Cluster, file: str, overrides: tuple[str, ...]) -> Values:
    """dtypes and sizes of what collectives carry in one update, by their kind, and whether a
    block's weights are low-precision numbers while it computes."""
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    sent: set[tuple[str, str]] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = str(function)
            if name.startswith(("c10d.", "_c10d_functional.")):
                for tensor in _tensors(args):
                    if tensor.numel() > 64:
                        sent.add((name.split(".")[1].strip("_"), str(tensor.dtype)))
            return function(*args, **(kwargs or {}))

    assert dist.is_initialized()
    job = job_of(file, overrides)
    rounded: dict[str, bool] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: Any, *_: Any) -> None:
            weight = module.weight.detach()
            rounded[name] = torch.equal(weight.float(), weight.bfloat16().float())

        return hook

    for name, module in job.engine.model.named_modules():
        if isinstance(module, Linear):
            module.register_forward_hook(look(name))
    feed = open_loader(job, 0)
    for _ in range(3):  # zeros are the same in any precision
        update(job, next(feed))
    rounded.clear()
    with Watch():
        update(job, next(feed))
    feed.close()
    return {"sent": sent, "rounded": rounded}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def reordered(job: Job) -> Any:
    """This rank's part of each batch when the whole batch is dealt out backwards by twos."""
    rank, world = job.cluster.rank, job.cluster.world_size
    alone = replace(job, cluster=replace(job.cluster, rank=0, world_size=1))
    for batch in open_loader(alone, 0):
        size = len(batch.keys)
        order = [*range(0, size, 2), *range(1, size, 2)][::-1]
        yield chosen(batch, order[rank::world])


def chosen(batch: Batch, order: list[int]) -> Batch:
    part = batch.map(lambda tensor: tensor[order])
    return replace(part, keys=tuple(batch.keys[i] for i in order))


def ranges(job: Job, *, averages: bool = True) -> dict[str, Tensor]:
    """Copies of this rank's weights and moments, and of averages."""
    made = {}
    for shard in job.engine.shards():
        made[f"weight/{shard.name}"] = shard.master.clone()
        made |= {f"{key}/{shard.name}": value.clone() for key, value in shard.optimizer.items()}
        for decay, average in job.ema.averages.items() if averages else ():
            made[f"ema{decay}/{shard.name}"] = average[shard.name].clone()
    return made


def state_of(job: Job) -> dict[str, Tensor]:
    return dict(job.engine.full_state())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def digest(state: Any) -> str:
    """Of names, shapes and bits."""
    made = hashlib.sha256()
    for name, tensor in sorted(state):
        made.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        made.update(tensor.contiguous().numpy().tobytes())
    return made.hexdigest()
