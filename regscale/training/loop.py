"""The training loop: batches in, updates out, and a run that may be killed anywhere."""

import json
import logging
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext

from regscale.checkpoint import Lease
from regscale.cluster import tighten
from regscale.config import to_yaml
from regscale.errors import RegscaleError
from regscale.log import to_file
from regscale.training.boundary import GO_ON, LOST, Boundary
from regscale.training.divergence import check
from regscale.training.folder import open_folder, write_text
from regscale.training.heartbeat import Heartbeat
from regscale.training.job import Job, Outcome
from regscale.training.profiler import Profile
from regscale.training.report import Reporter
from regscale.training.resume import record, resume
from regscale.training.saver import Saver
from regscale.training.state import pieces
from regscale.training.step import open_loader, update
from regscale.training.stop import StopFlag, reason
from regscale.training.throughput import Throughput
from regscale.training.watchdog import Watchdog
from regscale.training.window import Window

log = logging.getLogger(__name__)


def train(job: Job, stop: StopFlag | None = None, dog: Watchdog | None = None) -> Outcome:
    """Train from the newest checkpoint, or the start, to the last step or a wish to stop."""
    with ExitStack() as stack:
        job.cluster.from_first(lambda: open_folder(job.folder))
        stack.enter_context(to_file(job.folder, job.cluster.rank))
        loop = _Loop(job, stop or StopFlag(), dog, stack)
        with nullcontext() if dog is None else dog.telling():
            outcome = loop.run()
        marker = {"step": outcome.step, "samples": outcome.samples, "reason": outcome.reason}
        if job.cluster.first:
            write_text(job.folder / "marker.json", json.dumps(marker) + "\n")
    return outcome


class _Loop:
    """What lives as long as a run is trained. Every rank has one; rank 0 alone holds the lease
    and writes reports."""

    def __init__(self, job: Job, stop: StopFlag, dog: Watchdog | None, stack: ExitStack) -> None:
        self.job, self.stop, self.dog = job, stop, dog
        self.heartbeat: Heartbeat | None = None
        job.cluster.from_first(lambda: self._take(stack))
        self.window = Window(job.quantities(), job.cluster)
        self.step, self.samples, self.origin = resume(job, self.window)
        self.saver = stack.enter_context(
            Saver(
                job.checkpoints,
                job.cluster,
                keep_last=job.config.keep_last,
                keep_every=job.config.keep_every,
                keep_step=job.evaluation.best_step if job.evaluation else lambda: None,
                resumed=self.step,
                check_lease=self._check_lease,
                max_writers=job.config.max_writers,
            )
        )
        self.resumed, self.reported = self.step, self.samples
        self.boundary = Boundary(job.cluster)
        self.throughput = Throughput(job.flops, job.peak_flops, job.cluster)
        self.profile = stack.enter_context(
            Profile(job.config.profile, job.folder, job.cluster.rank)
        )
        self.reporter = stack.enter_context(self._reporter()) if job.cluster.first else None
        self.loader = stack.enter_context(closing(open_loader(job, self.samples)))

    def run(self) -> Outcome:
        job, config = self.job, self.job.config
        wish = max(job.cluster.gather(self.stop.wish))  # of the time before the first step
        if job.cluster.first:
            (job.folder / "marker.json").unlink(missing_ok=True)
            write_text(job.folder / "config.yaml", to_yaml(job.values))
        while self.step < config.num_steps and wish == GO_ON:
            self.profile.step(self.step)
            _stop_aligning(job, self.step)
            with self.throughput.waiting():
                batch = next(self.loader)
            self.throughput.count(job.towers, batch)
            self.window.add(*update(job, batch))
            self.step += 1
            self.samples += config.batch_size
            self._after_step()
            wish = self._agree()
        self._finish()
        done = self.step >= config.num_steps
        return Outcome(self.step, self.samples, "finished" if done else str(reason(wish)))

    def _after_step(self) -> None:
        config, step = self.job.config, self.step
        if self.dog is not None:
            self.dog.tighten(config.hang_seconds)
            self.dog.beat(f"step {step + 1}")
        if step == self.resumed + 1:  # the watchdog, which writes stacks, comes first
            hang, long = 2 * config.hang_seconds, config.start_seconds
            tighten(self.job.cluster, step_seconds=hang, control_seconds=max(hang, long))
        if self.reporter is not None:
            self.reporter.advance()
        if config.compare_every and step % config.compare_every == 0:
            check(self.job.engine, self.job.cluster, step)
        if step % config.log_every == 0:
            self._report()
        is_best = self._evaluate()
        if is_best or step % config.checkpoint_every == 0:
            self._save()
        if config.preview_every and step % config.preview_every == 0:
            self._preview()

    def _agree(self) -> int:
        """What any rank wishes; the loss of the lease is raised on all."""
        lost = self.heartbeat is not None and self.heartbeat.lost is not None
        wish = self.boundary(LOST if lost else self.stop.wish)
        if wish == LOST:
            self.job.cluster.from_first(self._check_lease)
        return wish

    def _finish(self) -> None:
        """The last checkpoint has to be there, whatever became of those on the way."""
        self.boundary.close()
        with self._during("the last save"):
            if (self.saver.wait() or self.resumed) != self.step:
                self._save()
                self.saver.wait(strict=True)

    def _during(self, doing: str) -> AbstractContextManager[None]:
        """What takes longer than a step."""
        seconds = self.job.config.start_seconds
        return nullcontext() if self.dog is None else self.dog.during(doing, seconds=seconds)

    def _save(self) -> None:
        """Copies of the weights are compared first: what has come apart is not saved."""
        job = self.job
        check(job.engine, job.cluster, self.step)
        with self._during("a save"):
            self.saver.save(
                pieces(job.engine, job.ema),
                record(job, self.window, self.step, self.samples, self.origin),
            )

    def _evaluate(self) -> bool:
        """Whether an evaluation was due and is the best so far: then its weights are saved."""
        evaluation = self.job.evaluation
        if evaluation is None or self.step % evaluation.every:
            return False
        with self._during("an evaluation"):
            figures = evaluation(self.step)
        if self.reporter is not None:
            self.reporter.evaluated(self.step, figures)
        return self.job.cluster.from_first(evaluation.best_step) == self.step

    def _preview(self) -> None:
        """Draw on the way: a picture that cannot be written must not end a run."""
        try:
            with self._during("pictures"):
                self.job.preview(self.step)
        except RegscaleError as error:
            log.warning("training goes on without these pictures: %s", error)

    def _report(self) -> None:
        figures = self.window.read() | {"learning_rate": self.job.engine.learning_rate()}
        samples = self.samples - self.reported
        figures |= self.throughput.read(samples)
        self.reported = self.samples
        if self.reporter is not None:
            self.reporter.report(self.step, figures)
        if self.window.in_a_row >= self.job.config.max_skipped:
            bad = [n for n, x in figures.items() if x != x or abs(x) == float("inf")]
            raise RegscaleError(
                f"step {self.step}",
                f"{self.window.in_a_row} updates in a row were skipped: their gradient was not "
                "finite",
                found=f"not finite: {', '.join(bad) or 'the gradient'}",
                fix="Lower the learning rate, use bf16 or fp32, or look at the data of these "
                "steps.",
            )

    def _take(self, stack: ExitStack) -> None:
        job = self.job
        lease = Lease.acquire(job.folder, job=job.cluster.job, restarts=job.cluster.restarts)
        self.heartbeat = stack.enter_context(Heartbeat(stack.enter_context(lease)))

    def _check_lease(self) -> None:
        assert self.heartbeat is not None, "rank 0 holds the lease"
        self.heartbeat.check()

    def _reporter(self) -> Reporter:
        job = self.job
        return Reporter(
            job.folder,
            start=self.step,
            num_steps=job.config.num_steps,
            name=job.name,
            project=job.config.wandb,
            values=job.values,
        )


def _stop_aligning(job: Job, step: int) -> None:
    """Freeze the projector of each target whose alignment ends at or before this update."""
    for index, stop_step in enumerate(job.stop_steps):
        if stop_step is not None and step >= stop_step and job.engine.model.aligning[index]:
            log.info("step %s: alignment with %s stops", step, job.towers.aligned[index])
            job.engine.model.stop_aligning(index)
            job.engine.rebuild()
            job.ema.follow(job.engine.shards())
