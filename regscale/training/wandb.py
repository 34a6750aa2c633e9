"""Weights & Biases: offline without a key, and never a reason for training to stop."""

import contextlib
import importlib
import logging
import os
import queue
import signal
import threading
from pathlib import Path
from typing import Any

from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

INIT_SECONDS = 20.0  # to reach the server at the start; training waits for it
FINISH_SECONDS = 60.0  # to send what is left at the end
MAX_WAITING = 1000  # reports that wandb has not taken yet


class Wandb:
    """A wandb run that goes on under the same id when its training run resumes.

    A thread of its own sends, so that a wandb that hangs holds nobody.
    """

    def __init__(self, folder: Path, name: str, project: str, values: dict[str, Any]) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise RegscaleError(
                "training.wandb",
                "needs the package 'wandb'",
                found="it is not installed",
                fix="pip install 'regscale[wandb]', or set training.wandb=null.",
            ) from error
        self._run: Any = None
        mode = None if _has_key(wandb) else "offline"
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=_identity(folder),
                resume="allow",
                dir=str(folder),
                config=values,
                mode=os.environ.get("WANDB_MODE", mode),
                settings=_settings(wandb),
            )
        except Exception as error:
            _told(error)
        self._figures: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._send, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Send figures; a failure ends the reporting, not the run."""
        self._put((step, figures))

    def finish(self, *, seconds: float = FINISH_SECONDS) -> None:
        """Close the wandb run, or leave it alone where that takes too long."""
        if self._run is None:
            return
        self._put(None)
        self._thread.join(seconds)
        if self._run is not None and self._thread.is_alive():
            self._gave_up(TimeoutError(f"it did not finish within {seconds:.0f} s"))
            _end_service()

    def _put(self, figures: tuple[int, dict[str, float]] | None) -> None:
        if self._run is None:
            return
        try:
            self._figures.put_nowait(figures)
        except queue.Full:
            self._gave_up(TimeoutError(f"it does not take figures: {MAX_WAITING} wait"))

    def _send(self) -> None:
        while (run := self._run) is not None:
            figures = self._figures.get()
            try:
                if figures is None:
                    run.finish()
                    return
                run.log(figures[1], step=figures[0])
            except Exception as error:
                self._gave_up(error)

    def _gave_up(self, error: Exception) -> None:
        run, self._run = self._run, None
        if run is not None:
            _told(error)


def _told(error: Exception) -> None:
    log.warning("wandb failed and is left alone from here on: %s", error)


def _settings(wandb: Any) -> Any:
    """wandb's own limit holds where it sends in its exit hook, too; older ones know none."""
    known = getattr(wandb.Settings, "model_fields", {})
    limit = {"finish_timeout": FINISH_SECONDS / 2} if "finish_timeout" in known else {}
    return wandb.Settings(init_timeout=INIT_SECONDS, **limit)


def _end_service() -> None:
    """Kill the process that sends, for which wandb's exit hook would wait without a limit."""
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().startswith("wandb"):
                    os.kill(int(child), signal.SIGKILL)


def _has_key(wandb: Any) -> bool:
    try:
        return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
    except Exception as error:
        log.info("wandb has no usable key (%s): offline", error)
        return False


def _identity(folder: Path) -> str:
    """One wandb run for one run folder, however often it restarts."""
    path = folder / "wandb-id"
    if not path.exists():
        path.write_text(os.urandom(6).hex())
    return path.read_text()
