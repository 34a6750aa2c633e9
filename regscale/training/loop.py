"""The training loop: batches in, updates out, and a run that may be killed anywhere."""

import json
import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from regscale.checkpoint import Lease, Reader, Record, newest, retain, save
from regscale.cluster import Cluster
from regscale.config import to_yaml
from regscale.data import NoiseShapes, Source, batches, on_device
from regscale.encoding import Towers
from regscale.errors import RegscaleError
from regscale.objective import DrawConfig, Weights, draw, losses, total
from regscale.parallel import Engine, StepResult
from regscale.path import Path as DiffusionPath
from regscale.training.config import Config
from regscale.training.ema import Ema
from regscale.training.folder import open_folder, write_text
from regscale.training.heartbeat import Heartbeat
from regscale.training.report import Reporter
from regscale.training.state import check_same_run, pieces, restore
from regscale.training.stop import StopFlag
from regscale.training.window import Window
from regscale.types import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that training needs, alive."""

    name: str
    folder: Path
    seed: int
    config: Config
    values: dict[str, Any]  # the whole run's config, for checkpoints
    cluster: Cluster
    source: Source
    shapes: NoiseShapes
    towers: Towers
    engine: Engine
    ema: Ema
    path: DiffusionPath
    times: DrawConfig
    weights: Weights
    dropout: float
    stop_steps: tuple[int | None, ...]  # one per aligned target
    preview: Callable[[int], None]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def quantities(self) -> tuple[str, ...]:
        """The names of what a step measures."""
        tokens = [f"tokens_{name}" for name in self.towers.entangled]
        aligned = [f"align_{name}" for name in self.towers.aligned]
        return ("loss", "denoise", *tokens, *aligned, "grad")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: at which update, and 'finished' or the signal that stopped it."""

    step: int
    samples: int
    reason: str


def train(job: Job, stop: StopFlag | None = None) -> Outcome:
    """Train from the newest checkpoint, or the start, to the last step or a wish to stop."""
    window = Window(job.quantities(), job.cluster.device)
    open_folder(job.folder)
    with _lease(job) as lease, Heartbeat(lease) as heartbeat:
        step, samples = resume(job, window)
        (job.folder / "marker.json").unlink(missing_ok=True)
        write_text(job.folder / "config.yaml", to_yaml(job.values))
        outcome = _run(job, window, stop or StopFlag(), heartbeat, step, samples)
        marker = {"step": outcome.step, "samples": outcome.samples, "reason": outcome.reason}
        write_text(job.folder / "marker.json", json.dumps(marker) + "\n")
    return outcome


def _run(
    job: Job, window: Window, stop: StopFlag, heartbeat: Heartbeat, step: int, samples: int
) -> Outcome:
    saved = step
    with closing(open_loader(job, samples)) as loader, _reporter(job, step) as reporter:
        while step < job.config.num_steps and stop.reason is None:
            heartbeat.check()
            _stop_aligning(job, step)
            window.add(*update(job, next(loader)))
            step, samples = step + 1, samples + job.config.batch_size
            reporter.advance()
            if step % job.config.log_every == 0:
                _report(job, reporter, window, step)
            if step % job.config.checkpoint_every == 0:
                saved = step if _try_checkpoint(job, window, step, samples) else saved
            if job.config.preview_every and step % job.config.preview_every == 0:
                _try_preview(job, step)
        if saved != step:
            checkpoint(job, window, step, samples)
    reason = "finished" if step >= job.config.num_steps else str(stop.reason)
    return Outcome(step, samples, reason)


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
    chance = draw(noise, job.times, dropout=job.dropout, path=job.path)
    null = job.towers.conditioner.null(example.condition)
    parts = losses(job.engine.forward, example, chance, null=null, path=job.path)
    loss = total(parts, job.weights) * share
    job.engine.backward(loss)
    aligned = [loss.new_zeros(1) if a is None else a for a in parts.alignment]
    means = [x.detach().mean() * share for x in (parts.denoising, *parts.tokens, *aligned)]
    return [loss.detach(), *means]


def _lease(job: Job) -> Lease:
    return Lease.acquire(job.folder, job=job.cluster.job, restarts=job.cluster.restarts)


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


def _reporter(job: Job, step: int) -> Reporter:
    return Reporter(
        job.folder,
        start=step,
        num_steps=job.config.num_steps,
        name=job.name,
        project=job.config.wandb,
        values=job.values,
    )


def _report(job: Job, reporter: Reporter, window: Window, step: int) -> None:
    figures = window.read() | {"learning_rate": job.engine.learning_rate()}
    reporter.report(step, figures, batch_size=job.config.batch_size)
    if window.in_a_row >= job.config.max_skipped:
        bad = [
            name for name, value in figures.items() if value != value or abs(value) == float("inf")
        ]
        raise RegscaleError(
            f"step {step}",
            f"{window.in_a_row} updates in a row were skipped: their gradient was not finite",
            found=f"not finite: {', '.join(bad) or 'the gradient'}",
            fix="Lower the learning rate, use bf16 or fp32, or look at the data of these steps.",
        )


def _stop_aligning(job: Job, step: int) -> None:
    """Freeze the projector of each target whose alignment ends at or before this update."""
    for index, stop_step in enumerate(job.stop_steps):
        if stop_step is not None and step >= stop_step and job.engine.model.aligning[index]:
            log.info("step %s: alignment with %s stops", step, job.towers.aligned[index])
            job.engine.model.stop_aligning(index)
            job.engine.rebuild()
            job.ema.follow(job.engine.shards())


def checkpoint(job: Job, window: Window, step: int, samples: int) -> None:
    """Save the run after update `step` and remove what retention does not keep."""
    progress = {
        "engine": job.engine.progress(),
        "window": window.state(),
        "data": job.source.fingerprint,
    }
    record = Record(step=step, samples=samples, config=job.values, progress=progress)
    folder = save(job.checkpoints, pieces(job.engine, job.ema), record)
    log.info("step %s: saved %s", f"{step:,}", folder)
    retain(job.checkpoints, keep_last=job.config.keep_last, keep_every=job.config.keep_every)


def _try_checkpoint(job: Job, window: Window, step: int, samples: int) -> bool:
    """Save on the way: a full disk must not end a run whose older checkpoints are intact."""
    try:
        checkpoint(job, window, step, samples)
    except RegscaleError as error:
        log.warning("training goes on without this checkpoint: %s", error)
        return False
    return True


def _try_preview(job: Job, step: int) -> None:
    """Draw on the way: a picture that cannot be written must not end a run."""
    try:
        job.preview(step)
    except RegscaleError as error:
        log.warning("training goes on without these pictures: %s", error)


def resume(job: Job, window: Window) -> tuple[int, int]:
    """(updates done, samples seen) of the newest intact checkpoint, taken into the job; else 0."""
    reader = newest(job.checkpoints)
    if reader is None:
        return 0, 0
    check_same_run(reader.config, job.values, str(reader.folder))
    _check_data(reader, job.source)
    restore(reader, job.engine, job.ema)
    job.engine.restore(reader.progress["engine"])
    window.restore(reader.progress["window"])
    log.info("resuming after step %s from %s", f"{reader.step:,}", reader.folder)
    return reader.step, reader.samples


def _check_data(reader: Reader, source: Source) -> None:
    saved = reader.progress["data"]
    if saved is None:
        log.warning("%s does not say what data it was trained on; going on", reader.folder)
    elif saved != source.fingerprint:
        raise RegscaleError(
            reader.folder,
            "was trained on other data",
            found=f"fingerprint {source.fingerprint}, saved {saved}",
            fix="Restore the data of that run, or choose another run name.",
        )
