"""A trace of a few updates, on request: what ran when, on the CPU and on the device."""

import logging
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from regscale.config import Invalid

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """Every rank writes `profile/` in the run folder: chrome://tracing and Perfetto read it."""

    start: int | None = None  # updates done before the trace begins; null: no trace
    steps: int = 3

    def __post_init__(self) -> None:
        if self.start is not None and self.start < 0:
            raise Invalid("start", "is not negative", found=self.start, fix="null: no trace.")
        if self.steps < 1:
            raise Invalid("steps", "is positive", found=self.steps, fix="Give 1 or more.")


class Profile:
    """Traces `config.steps` updates; a context manager. A trace that fails ends nothing else."""

    def __init__(self, config: ProfileConfig, folder: Path, rank: int) -> None:
        self._config, self._folder, self._rank = config, folder / "profile", rank
        self._trace: profile | None = None

    def step(self, step: int) -> None:
        """Before each update: `step` are done."""
        start = self._config.start
        if start is None:
            return
        if self._trace is not None and step >= start + self._config.steps:
            self._write()
        if step == start:
            self._begin()

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        trace = profile(activities=activities, record_shapes=True)
        try:
            trace.start()
        except RuntimeError as error:  # another tool holds the device's counters
            log.warning("training goes on without a trace: %s", error)
            return
        self._trace = trace

    def _write(self) -> None:
        trace, self._trace = self._trace, None
        if trace is None:
            return
        path = self._folder / f"step-{self._config.start:08d}-rank-{self._rank:05d}.json.gz"
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            trace.stop()
            path.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            log.warning("training goes on without this trace: %s", error)
        else:
            log.info("traced updates from step %s: %s", f"{self._config.start:,}", path)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._write()
