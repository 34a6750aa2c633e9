"""What a checkpoint of a run says, and how a run goes on from one."""

import logging
from typing import Any

from regscale.checkpoint import Reader, Record, newest
from regscale.data import Source
from regscale.errors import RegscaleError
from regscale.training.job import Job
from regscale.training.state import check_same_run, restore
from regscale.training.window import Window

log = logging.getLogger(__name__)


Origin = dict[str, Any] | None  # the weights that a run once started from


def record(job: Job, window: Window, step: int, samples: int, origin: Origin) -> Record:
    """What goes with the tensors after update `step`. Collective."""
    progress = {
        "engine": job.engine.progress(),
        "window": window.state(),
        "data": job.source.fingerprint,
        "attention": job.attention,
        "init_from": origin,
    }
    return Record(step=step, samples=samples, config=job.values, progress=progress)


def resume(job: Job, window: Window) -> tuple[int, int, Origin]:
    """(updates done, samples seen, origin) of the newest intact checkpoint, taken into the job; of
    a new run 0, 0 and its own origin.

    All ranks verify, then agree, then write into live tensors.
    """
    reader = newest(job.checkpoints, job.cluster)
    if reader is None:
        return 0, 0, job.origin
    check_same_run(job.complete(reader.config), job.values, str(reader.folder))
    _check_data(reader, job.source)
    before = reader.progress.get("attention", job.attention)
    if before != job.attention:
        log.warning("attention was computed otherwise before: %s; bits may differ", before)
    restore(reader, job.engine, job.ema)
    job.engine.restore(reader.progress["engine"])
    window.restore(reader.progress["window"])
    log.info("resuming after step %s from %s", f"{reader.step:,}", reader.folder)
    return reader.step, reader.samples, reader.progress.get("init_from")


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
