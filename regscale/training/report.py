"""The same figures to the log, to metrics.jsonl and to wandb."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from regscale.training.folder import write_text
from regscale.training.wandb import Wandb

log = logging.getLogger(__name__)


class Reporter:
    """Writes a run's figures; a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        num_steps: int,
        name: str,
        project: str | None,
        values: dict[str, Any],
    ) -> None:
        self._path = folder / "metrics.jsonl"
        _forget_after(self._path, start)
        self._bar = tqdm(total=num_steps, initial=start, disable=None, unit="step")
        self._redirect = logging_redirect_tqdm()
        self._wandb = None if project is None else Wandb(folder, name, project, values)

    def __enter__(self) -> "Reporter":
        self._redirect.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._redirect.__exit__(kind, error, trace)
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, figures: dict[str, float]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(figures) + "\n")
        except OSError as error:
            log.warning("training goes on without this line of %s: %s", self._path, error)

    def advance(self) -> None:
        """One update is done."""
        self._bar.update()

    def report(self, step: int, figures: dict[str, float]) -> None:
        """The means since the last report."""
        self._write({"step": step, **figures})
        log.info(line(step, figures))
        if self._wandb is not None:
            self._wandb.log(step, figures)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of an evaluation; those at single times (`name@time`) are not spoken."""
        self._write({"step": step, **figures})
        log.info(line(step, {n: value for n, value in figures.items() if "@" not in n}))
        if self._wandb is not None:
            self._wandb.log(step, dict(figures))


def _step_of(text: str) -> float:
    """The step of a line of metrics.jsonl; infinite for a line that a crash tore."""
    try:
        return float(json.loads(text)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def line(step: int, figures: dict[str, float]) -> str:
    """`step 12,400  loss 0.7312  denoise 0.7401  ...  7,912 img/s  mfu 47.2%  wait 3%`."""
    parts = [f"step {step:,}"]
    for name, value in figures.items():
        if name == "images_per_second":
            parts.append(f"{value:,.0f} img/s")
        elif name == "mfu":
            parts.append(f"mfu {value:.1%}")
        elif name == "wait":
            parts.append(f"wait {value:.0%}")
        elif name == "memory_gib":
            parts.append(f"mem {value:.1f} GiB")
        elif name == "skipped":
            parts += [f"skipped {value:.0f}"] if value else []
        elif name == "learning_rate":
            parts.append(f"lr {value:.2e}")
        else:
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)


def _forget_after(path: Path, step: int) -> None:
    """Drop the figures of steps that a resumed run makes again."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        kept = [text for text in lines if text.endswith("\n") and _step_of(text) <= step]
        if len(kept) < len(lines):
            write_text(path, "".join(kept))
