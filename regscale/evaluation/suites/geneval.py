"""GenEval (arXiv 2310.11513): the authors' prompts and rules over a detector of your own.

`detector=package.module:function` takes one picture, (3, SH, SW) uint8, and returns what it finds
by class (regscale.evaluation.geneval.Detected). For the official detector and published figures
draw the folder of the official scorer: `python -m regscale.evaluate layout`.
"""

from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.evaluation._references import file_digest
from regscale.evaluation.collecting import Place
from regscale.evaluation.geneval import PER_PROMPT, Detector, correct, read_tasks, scores
from regscale.evaluation.metrics import Figure
from regscale.evaluation.pictures import Pictures
from regscale.evaluation.suites import Outcome
from regscale.evaluation.suites._classes import seeds_of
from regscale.sampling.many import Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The authors' evaluation_metadata.jsonl, and what finds objects in a picture."""

    metadata: str = ""
    detector: str = ""  # package.module:function
    seed: int = 0

    def __post_init__(self) -> None:
        for key, example in (
            ("metadata", "evaluation_metadata.jsonl"),
            ("detector", "package.module:function"),
        ):
            if not getattr(self, key):
                raise Invalid(key, "is needed", found="none", fix=f"Give {key}={example}.")


class GenEval:
    """Four pictures of each prompt."""

    def __init__(self, config: Config) -> None:
        path = Path(config.metadata)
        self.config, self.detector = config, detector_of(config.detector)
        self.tasks = [task for task in read_tasks(path) for _ in range(PER_PROMPT)]
        self.labels = f"GenEval prompts {path.name} {file_digest(path)}, {PER_PROMPT} each"
        self.seeds = seeds_of(len(self.tasks), config.seed)

    def wanted(self, num_classes: int | None) -> list[Wanted]:  # noqa: ARG002
        return [Wanted(task.prompt, self.config.seed + i) for i, task in enumerate(self.tasks)]

    def measure(self, pictures: Pictures, place: Place) -> Outcome:
        if len(pictures) != len(self.tasks):
            raise RegscaleError(
                f"geneval: {pictures.name}",
                f"holds {PER_PROMPT} pictures of each prompt, in their order",
                found=f"{len(pictures):,} of {len(self.tasks):,} pictures",
                fix="Give all of them, named so that they sort as the prompts do.",
            )
        own = pictures.share(place.cluster)
        found = [self.detector(image) for batch in pictures.batches(own) for image in batch]
        tasks = self.tasks[own.start : own.stop]
        mine = [(task.tag, correct(each, task)) for each, task in zip(found, tasks, strict=True)]
        verdicts = [each for part in place.cluster.gather(mine) for each in part]
        times = Counter(tag for tag, _ in verdicts) | Counter(overall=len(verdicts))
        return Outcome(
            figures=[
                Figure(
                    name=f"GenEval {tag}",
                    value=rate.value,
                    num_samples=times[tag],
                    evaluator=self.config.detector,
                    spread=(rate.high - rate.low) / 2,
                    no_floor="none: prompts come without real pictures",
                )
                for tag, rate in scores(verdicts).items()
            ]
        )


def detector_of(name: str) -> Detector:
    """The function that a setting names."""
    module, _, function = name.partition(":")
    try:
        found: Detector = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RegscaleError(
            f"detector: {name}",
            "names a function that finds the objects of a picture",
            found=str(error) or repr(error),
            fix="Give package.module:function, with the package where Python finds it.",
        ) from error
    return found


def build(config: Config) -> GenEval:
    return GenEval(config)
