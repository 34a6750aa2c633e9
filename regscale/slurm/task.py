"""One task of a job: preflight, a command of regscale, and word of how it ended.

srun python -m regscale.slurm task train configs/digits.yaml [key=value ...]
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType

from regscale import log
from regscale.errors import RegscaleError
from regscale.slurm import history
from regscale.slurm.place import Place, failed, read, write
from regscale.slurm.watch import Watch

COMMANDS = {
    "train": "regscale.train",
    "prepare": "regscale.prepare.__main__",
    "evaluate": "regscale.evaluate.__main__",
    "sample": "regscale.sample",
}


def run(arguments: list[str]) -> int:
    """The exit status: 0 also where the task was told to stop, 2 for a user's fault."""
    place = Place.current()
    log.set_up(rank=place.rank)
    _hear_early(place)
    with Watch(place) as watch:
        return _told(place, lambda: _run(place, watch, arguments))


def _run(place: Place, watch: Watch, arguments: list[str]) -> None:
    command, rest = arguments[:1], arguments[1:]
    if not command or command[0] not in COMMANDS:
        raise RegscaleError(
            "python -m regscale.slurm task",
            f"needs one of {', '.join(COMMANDS)}",
            found=" ".join(command) or "nothing",
            fix="For example: task train configs/digits.yaml",
        )
    run_folder = _prepared(place, rest) if command == ["train"] else None
    stop = os.environ.get("REGSCALE_STOP_FILE")
    if run_folder is not None:
        watch.guard(run_folder)
    elif stop and command != ["train"]:  # these write every file whole, and go on where they were
        watch.leave_when(Path(stop))
    import_module(COMMANDS[command[0]]).main(rest)
    if run_folder is not None and place.rank == 0 and place.outcome is not None:
        write(place.outcome, read(run_folder / "marker.json"))


def _prepared(place: Place, arguments: list[str]) -> Path | None:
    """The run folder, after the preflight; None where nothing is to be trained."""
    from regscale.config import load, to_values, to_yaml
    from regscale.recipe import RunConfig
    from regscale.slurm.preflight import check

    words = [each for each in arguments if not each.startswith("-")]
    if not words or len(words) < len(arguments):
        return None  # --dry-run, --help, or a usage error, which the command itself explains
    config = load(RunConfig, Path(words[0]), words[1:])
    folder = Path(config.runs) / config.name
    if place.rank == 0 and place.folder is not None:
        write(place.folder / "run.json", {"run": str(folder.absolute())})
        history.add(folder, "start", **_start(place, folder))
    check(folder, device=config.device, config=to_yaml(to_values(config)))
    return folder


def _start(place: Place, run: Path) -> dict[str, object]:
    """What the history says about a beginning; `lost` are steps that have to be made again."""
    step, reported = history.newest_step(run) or 0, history.reported_step(run) or 0
    holder = str(read(run / "lease.json").get("job", place.job))
    return {
        "job": place.job,
        "restart": place.restart,
        "nodes": os.environ.get("SLURM_STEP_NODELIST", place.host),
        "ranks": place.world_size,
        "step": step,
        "lost": max(0, reported - step) if holder == place.job else 0,
    }


def _told(place: Place, work: Callable[[], None]) -> int:
    """Do it; where it fails, leave word and print the reason once for all tasks."""
    try:
        work()
    except RegscaleError as error:
        nodes = tuple(getattr(error, "nodes", ()))
        if failed(place, "error", str(error), nodes=nodes):
            sys.stderr.write(f"error: {error}\n")
        return 2
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code:
            failed(place, "error" if code == 2 else "fault", f"the command ended with {code}")
        return code
    except Exception as error:
        if _warned(place):
            return 0  # the others have left in order, and with them the line to them
        first = (str(error).splitlines() or [""])[0]
        if failed(place, "fault", f"{type(error).__name__}: {first}"):
            sys.stderr.write(f"rank {place.rank} on {place.host}: {traceback.format_exc()}")
        return 1
    return 0


def _hear_early(place: Place) -> None:
    """Signals of the time before training hears them, which importing and starting take."""

    def warned(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        file = os.environ.get("REGSCALE_STOP_FILE")
        if file:
            Path(file).touch()

    def ended(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if place.outcome is not None and not _warned(place):
            write(place.outcome, {"reason": signal.Signals(number).name})
        os._exit(0)

    signal.signal(signal.SIGUSR1, warned)
    signal.signal(signal.SIGTERM, ended)


def _warned(place: Place) -> bool:
    """Whether a task has left already because of the stop file."""
    return place.outcome is not None and read(place.outcome).get("reason") == "stop file"
