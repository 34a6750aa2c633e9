"""One update: batches of a run, losses of each micro-batch, the engine's step, the averages."""

from collections.abc import Generator

from torch import Tensor

from regscale.data import batches, on_device
from regscale.objective import draw, losses, total
from regscale.parallel import StepResult
from regscale.training.job import Job
from regscale.types import Batch


def update(job: Job, batch: Batch) -> tuple[list[Tensor], StepResult]:
    """One update in micro-batches, and the means of what it measured."""
    size = job.config.micro_batch or len(batch.keys)
    means: list[Tensor] = []
    for start, part in zip(range(0, len(batch.keys), size), batch.split(size), strict=True):
        with job.engine.micro_batch(last=start + size >= len(batch.keys)):
            values = _backward(job, part, share=len(part.keys) / len(batch.keys))
        means = values if not means else [a + b for a, b in zip(means, values, strict=True)]
    result = job.engine.step()
    job.ema.update()
    return [*means, result.grad_norm], result


def _backward(job: Job, part: Batch, *, share: float) -> list[Tensor]:
    """The gradients of one micro-batch, and its part of each mean."""
    part = part.to(job.cluster.device)
    example, noise = job.towers.encode(part), part.require("noise", by="training")
    chance = draw(noise, job.times, dropout=job.dropout, path=job.path, schedule=job.schedule)
    null = job.towers.conditioner.null(example.condition)
    parts = losses(job.engine.forward, example, chance, null=null, path=job.path)
    loss = total(parts, job.weights) * share
    job.engine.backward(loss)
    aligned = [loss.new_zeros(1) if a is None else a for a in parts.alignment]
    means = [x.detach().mean() * share for x in (parts.denoising, *parts.tokens, *aligned)]
    return [loss.detach(), *means]


def open_loader(job: Job, samples: int) -> Generator[Batch, None, None]:
    """The batches of a run from sample counter `samples` on, on its device."""
    loader = batches(
        job.source,
        job.shapes,
        seed=job.seed,
        start=samples,
        batch_size=job.config.batch_size,
        rank=job.cluster.rank,
        world_size=job.cluster.world_size,
        num_classes=job.towers.conditioner.num_classes,
        num_workers=job.config.num_workers,
        pin_memory=job.cluster.device.type == "cuda",
    )
    return on_device(loader, job.cluster.device)
