"""What the study of the entangled token trains: arms, controls, one-change ablations.

Every run is configs/shapecaps.yaml with overrides. Runs of one seed have the same samples in the
same order, noise, prompts and seeds of pictures.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from regscale.config import load
from regscale.errors import RegscaleError
from regscale.files import replacing
from regscale.recipe import RunConfig
from regscale.training.folder import open_folder

FILE = "study.json"
NO_TOKEN, NO_ALIGNMENT = "entangle.shapes_vit.weight=0", "align.shapes_vit.weight=0"
ARMS = {
    "flow": (NO_TOKEN, NO_ALIGNMENT),
    "alignment": (NO_TOKEN,),
    "token": (NO_ALIGNMENT,),
    "both": (),
}
WITH_TOKEN = ("token", "both")  # what ablations of the token can start from
SHUFFLED = "both, shuffled captions"  # the control that is trained
MEAN = "target: mean of patches"
QUARTERS, SIXTEENTHS = "K = 4: means of quarters", "K = 16: means of sixteenths"
CHANGES = {  # of a run with a token: a row's name, and what is overridden
    MEAN: ("targets.shapes_vit.token=mean",),
    "target: digits_vit, aligned as before": (
        "targets.digits_vit.kind=digits_vit",
        NO_TOKEN,
        "entangle.digits_vit.weight=0.03",
    ),
    QUARTERS: ("targets.shapes_vit.token=mean", "targets.shapes_vit.rows=2"),
    SIXTEENTHS: ("targets.shapes_vit.token=mean", "targets.shapes_vit.rows=4"),
    "schedule: shift 0.5": (
        "entangle.shapes_vit.schedule.kind=shift",
        "entangle.shapes_vit.schedule.shift=0.5",
    ),
    "schedule: lead 0.3": (
        "entangle.shapes_vit.schedule.kind=lead",
        "entangle.shapes_vit.schedule.lead=0.3",
    ),
    "schedule: independent": ("entangle.shapes_vit.schedule.kind=independent",),
    "schedule: independent, token first": (
        "entangle.shapes_vit.schedule.kind=independent",
        "entangle.shapes_vit.schedule.lead=1",
    ),
    "normalisation: unit": ("entangle.shapes_vit.normalisation=unit",),
    "normalisation: stats": (
        "entangle.shapes_vit.normalisation=stats",
        "entangle.shapes_vit.stats={runs}/token-stats.safetensors",
    ),
}
AGAINST = {QUARTERS: MEAN, SIXTEENTHS: MEAN}  # other changes are compared with the run itself
OWN, EMPTY = "own", "empty"  # evaluations of an arm
GUIDANCE = "token-guidance"  # its scale follows in the name of an evaluation
UNGUIDED = ("--guidance-scale", "1", "--token-guidance-scale", "1")
DRAWINGS: dict[str, Sequence[str]] = {
    OWN: (),
    EMPTY: ("texts=empty", *UNGUIDED),  # under the empty text both predictions are one
}
TOKEN_SCALES = (1.0, 1.5)  # beside the config's 3, which is that of the image


@dataclass(frozen=True, slots=True)
class Run:
    """One training, and the evaluations of its last weights: names and further arguments."""

    name: str
    arm: str  # or the change
    seed: int
    overrides: tuple[str, ...]
    drawings: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all runs below a folder have in common."""

    runs: Path
    config: Path = Path("configs/shapecaps.yaml")
    overrides: tuple[str, ...] = ()
    num_prompts: int = 400  # of each kind and split
    seeds: tuple[int, ...] = field(default=(0, 1, 2))

    def arms(self) -> list[Run]:
        """Seed by seed, so that a study that is cut off has whole comparisons; the control last."""
        runs = [self._run(arm, arm, s, ARMS[arm]) for s in self.seeds for arm in ARMS]
        return [*runs, self._run("shuffled", SHUFFLED, self.seeds[0], ("data.captions=shuffled",))]

    def ablations(self, base: str) -> list[Run]:
        """Of an arm with a token at the first seed; first that arm itself, at other guidance."""
        own = self._run(base, base, self.seeds[0], ARMS[base])
        scales = {
            f"{GUIDANCE}-{scale:g}": ("--token-guidance-scale", f"{scale:g}")
            for scale in TOKEN_SCALES
        }
        changed = [
            self._run(f"{base}-{_slug(change)}", change, self.seeds[0], (*ARMS[base], *overrides))
            for change, overrides in CHANGES.items()
        ]
        return [Run(own.name, base, own.seed, own.overrides, {OWN: (), **scales}), *changed]

    def configured(self, run: Run) -> RunConfig:
        """The run as one value."""
        return load(RunConfig, self.config, self.options(run))

    def options(self, run: Run) -> list[str]:
        """The run's overrides of the config."""
        own = [each.replace("{runs}", str(self.runs)) for each in run.overrides]
        return [f"runs={self.runs}", f"name={run.name}", f"seed={run.seed}", *own, *self.overrides]

    def folder(self, run: Run) -> Path:
        """Of the run."""
        return self.runs / run.name

    def place(self, run: Run, drawing: str) -> Path:
        """Of one of its evaluations."""
        return self.folder(run) / "evidence" / drawing

    def open(self) -> None:
        """Write what the runs have in common, or refuse a folder whose runs have another."""
        path, own = self.runs / FILE, self._values()
        if path.exists():
            if json.loads(path.read_text()) != own:
                raise RegscaleError(
                    path,
                    "is of a study with other settings, which cannot be compared",
                    found=path.read_text().strip(),
                    fix="Give the same settings, or another folder: --runs.",
                )
            return
        open_folder(self.runs)
        with replacing(path) as file:
            file.write((json.dumps(own) + "\n").encode())

    def _run(self, name: str, arm: str, seed: int, overrides: Sequence[str]) -> Run:
        drawings = DRAWINGS if arm in ARMS else {OWN: ()}
        return Run(f"{name}-{seed}", arm, seed, tuple(overrides), drawings)

    def _values(self) -> dict[str, object]:
        """Without the seeds, which may be added to."""
        values = asdict(self) | {"config": str(self.config), "overrides": list(self.overrides)}
        return {key: value for key, value in values.items() if key not in ("runs", "seeds")}


def read_study(runs: Path, seeds: Sequence[int]) -> Study:
    """The study whose runs lie in a folder."""
    try:
        values = json.loads((runs / FILE).read_text())
        config, overrides = Path(values.pop("config")), tuple(values.pop("overrides"))
        return Study(runs=runs, seeds=tuple(seeds), config=config, overrides=overrides, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegscaleError(
            runs / FILE,
            "does not tell of a study",
            found=error,
            fix="Begin one: python -m benchmarks.evidence run.",
        ) from error


def _slug(text: str) -> str:
    """A name as a folder has it."""
    letters = [each if each.isalnum() or each == "." else "-" for each in text]
    return "-".join(filter(None, "".join(letters).split("-")))
