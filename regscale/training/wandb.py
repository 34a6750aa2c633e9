"""Weights & Biases: offline without a key, and never a reason for training to stop."""

import importlib
import logging
import os
from pathlib import Path
from typing import Any

from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

INIT_SECONDS = 20.0  # to reach the server at the start; training waits for it


class Wandb:
    """A wandb run that goes on under the same id when its training run resumes."""

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
                settings=wandb.Settings(init_timeout=INIT_SECONDS),
            )
        except Exception as error:
            self._gave_up(error)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Send figures; a failure ends the reporting, not the run."""
        if self._run is None:
            return
        try:
            self._run.log(figures, step=step)
        except Exception as error:
            self._gave_up(error)

    def finish(self) -> None:
        """Close the wandb run."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._gave_up(error)

    def _gave_up(self, error: Exception) -> None:
        log.warning("wandb failed and is left alone from here on: %s", error)
        self._run = None


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
