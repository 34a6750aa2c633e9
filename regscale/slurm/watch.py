"""A task notices what Slurm does not: that a neighbour is dead or stopped, that a newer incarnation
of its job writes the run. Then it leaves by itself, and srun ends the others.

Every rank says in a file that it is alive, and looks at the next rank's: whoever is stopped is seen
by one other, whatever the number of ranks. Clocks are not compared; a file that does not change is
silent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from regscale.slurm.place import Place, failed, read, write

SILENT_SECONDS = 180.0
LEFT_STATUS = 70  # of a task that leaves by itself


class Watch:
    """A thread for as long as the block; harmless outside a launcher."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._silent = float(os.environ.get("REGSCALE_SILENT_SECONDS", SILENT_SECONDS))
        self._lease: Path | None = None
        self._stop: Path | None = None
        self._held = False  # the lease was this incarnation's
        self._seen: tuple[object, float] | None = None  # the neighbour's last beat, and when
        self._count = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def guard(self, run: Path) -> None:
        """From here on the run's lease is looked at too."""
        self._lease = run / "lease.json"

    def leave_when(self, stop: Path) -> None:
        """The command does not know of stop files: leave where one appears, in order."""
        self._stop = stop

    def __enter__(self) -> Watch:
        if self._place.folder is not None:
            self._beat()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._place.folder is not None and error is None:
            self._beat(left=True)

    def _run(self) -> None:
        while not self._done.wait(self._silent / 6):
            self._beat()
            if self._stop is not None and self._stop.exists():
                assert self._place.outcome is not None, "a launcher made the folder"
                write(self._place.outcome, {"reason": "stop file"})
                self._beat(left=True)
                os._exit(0)
            reason = self._superseded() or self._silent_neighbour()
            if reason is not None:
                kind, message, *nodes = reason
                if failed(self._place, kind, message, nodes=tuple(nodes)):
                    sys.stderr.write(f"rank {self._place.rank} leaves: {message}\n")
                    sys.stderr.flush()
                os._exit(LEFT_STATUS)  # the other threads may hang for ever

    def _beat(self, *, left: bool = False) -> None:
        self._count += 1
        facts = {"host": self._place.host, "pid": os.getpid(), "beat": self._count, "left": left}
        beats = self._place.beats
        assert beats is not None, "a launcher made the folder"
        try:
            beats.mkdir(parents=True, exist_ok=True)
            new = beats / f"{self._place.rank}.new"
            new.write_text(json.dumps(facts))
            new.replace(new.with_suffix(".json"))
        except OSError:  # a slow disk may recover; the neighbour decides
            return

    def _superseded(self) -> tuple[str, ...] | None:
        """Whether another incarnation or job writes this run: the kind, and a sentence."""
        place, holder = self._place, read(self._lease) if self._lease else {}
        if not holder:
            return None
        job, restart = str(holder.get("job", "")), int(holder.get("restarts", 0))
        if (job, restart) == (place.job, place.restart):
            self._held = True
        elif (job == place.job and restart > place.restart) or (self._held and job != place.job):
            return "superseded", f"job {job} (restart {restart}) writes this run now"
        return None

    def _silent_neighbour(self) -> tuple[str, ...] | None:
        """The kind, a sentence, and the node."""
        place = self._place
        if place.world_size == 1 or place.beats is None:
            return None
        rank = (place.rank + 1) % place.world_size
        facts = read(place.beats / f"{rank}.json")
        if not facts or facts.get("left"):
            self._seen = None  # it has not come yet, or is done
            return None
        now = time.monotonic()
        if self._seen is None or self._seen[0] != facts["beat"]:
            self._seen = (facts["beat"], now)
        seconds = now - self._seen[1]
        if seconds < self._silent:
            return None
        host = str(facts["host"])
        return "silent", f"rank {rank} on {host} was silent for {seconds:.0f} s", host
