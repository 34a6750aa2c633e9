"""One lab for all scenarios, and a folder to submit from in which the launchers lie as shipped."""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regscale.slurm.history import events, reported_step
from regscale.slurm.place import read
from tests.slurm.lab import Lab, missing

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "REGSCALE_ENV": sys.prefix,
    "PYTHONPATH": str(ROOT / "tests"),  # as all tests: see the Makefile
    "OMP_NUM_THREADS": "1",  # bit-exact sums, and few cores
    "REGSCALE_SILENT_SECONDS": "20",
    "REGSCALE_END_SECONDS": "20",
}
# One update of a tiny model is milliseconds: enough of them, so that there is time to disturb.
SMALL = (
    *("model.depth=2", "model.hidden_size=32", "align.digits_vit.depth=1"),
    *("training.log_every=1", "training.preview_every=0", "training.checkpoint_every=50"),
)
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")
ENDLESS = "training.num_steps=1000000"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge's socket is for everyone
    with Lab(folder, num_nodes=3) as lab:
        yield lab
    shutil.rmtree(folder)


class Site:
    """A folder to submit from."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        for name in ("launchers", "configs", "regscale"):
            shutil.copytree(ROOT / name, folder / name)

    def submit(self, name: str, *arguments: str, options: Any = (), **environment: str) -> str:
        """The id of a job of the launcher as shipped."""
        return self.lab.submit(
            f"launchers/{name}.sh",
            *arguments,
            folder=self.folder,
            options=options,
            **ENVIRONMENT | environment,
        )

    def digits(self, *arguments: str, options: Any = (), **environment: str) -> str:
        """A small run of digits."""
        return self.submit("digits", *SMALL, *arguments, options=options, **environment)

    def output(self, job: str) -> str:
        """What a job printed, without the figures of each step."""
        text = "\n".join(p.read_text() for p in sorted(self.folder.glob(f"*-{job}.out")))
        return re.sub(r"(?m)^step [\d,]+  loss .*\n", "", text)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def verdicts(self, name: str, job: str) -> list[dict[str, Any]]:
        """What a run's history says about the ends of a job."""
        found = events(self.run(name))
        return [event for event in found if event["event"] == "end" and event["job"] == job]

    def is_empty(self, seconds: float = 60) -> None:
        """Wait until no task of any job is left on any node."""
        nodes = self.lab.nodes
        self.lab.until(
            lambda: not any(map(self.lab.tasks, nodes)), "no task is left", seconds=seconds
        )

    def trains(self, job: str, name: str, restart: int = 0, seconds: float = 300) -> Any:
        """Wait until an incarnation of a job has made some steps; what the history says of it."""
        run = self.run(name)

        def begun() -> list[dict[str, Any]]:
            wanted = ("start", job, restart)
            return [e for e in events(run) if (e["event"], e["job"], e.get("restart")) == wanted]

        def ready() -> bool:
            state = self.lab.job(job)["JobState"]
            assert state not in OVER, state
            starts, lease = begun(), read(run / "lease.json")
            if not starts or (lease.get("job"), lease.get("restarts")) != (job, restart):
                return False
            # Figures of steps that are made again stay until the run has been resumed.
            metrics = run / "metrics.jsonl"
            if not metrics.exists() or metrics.stat().st_mtime < starts[0]["time"]:
                return False
            return (reported_step(run) or 0) >= starts[0]["step"] + 3

        what = f"restart {restart} of {name} trains"
        try:
            self.lab.until(ready, what, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output(job)}") from None
        return begun()[0]

    def ends(self, job: str, state: str = "COMPLETED", seconds: float = 300) -> str:
        """Wait for the end; what the job printed."""
        try:
            facts = self.lab.wait(
                job, lambda facts: facts["JobState"] in OVER, "the job ends", seconds
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output(job)}") from error
        assert facts["JobState"] == state, self.output(job)
        return self.output(job)


@pytest.fixture(scope="session")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(lab, tmp_path_factory.mktemp("site"))
