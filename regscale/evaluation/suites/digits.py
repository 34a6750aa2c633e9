"""The embedded digits: distances from the 599 that no model has seen, and right labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from regscale.config import Invalid
from regscale.data import digits as source
from regscale.evaluation.collecting import Place
from regscale.evaluation.extractors import digits as extractor
from regscale.evaluation.judging import Seen, figures
from regscale.evaluation.metrics import Collected, Figure, accuracy_figure
from regscale.evaluation.pictures import Pictures, of_source
from regscale.evaluation.real import Against
from regscale.evaluation.suites import Outcome
from regscale.evaluation.suites._classes import Labels, labels_of, seeds_of, wanted_of
from regscale.sampling.many import Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How many, of which classes, from which seed on."""

    num_samples: int = 1000
    labels: Labels = "balanced"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 10:
            raise Invalid("num_samples", "is 10 or more", found=self.num_samples, fix="Try 1000.")


class DigitsSuite:
    """Nothing to download: extractor and real digits come with the package."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.labels, self.seeds = config.labels, seeds_of(config.num_samples, config.seed)

    def wanted(self, num_classes: int | None) -> list[Wanted]:
        config = self.config
        return wanted_of(config.num_samples, num_classes, config.labels, seed=config.seed)

    def measure(self, pictures: Pictures, place: Place) -> Outcome:
        real = source.build(source.Config(split="judge"))
        against = Against(identity=real.fingerprint, real=of_source(real, name="digits, judge"))
        model = extractor.build(extractor.Config())
        found, kept = figures({"digits": model}, {"digits": against}, pictures, place)
        if len(pictures) == self.config.num_samples:
            found.append(self._accuracy(kept["digits"], real.labels))
        return Outcome(figures=found)

    def _accuracy(self, seen: Seen, real_labels: Tensor) -> Figure:
        """The share of pictures in which the extractor sees the digit that was asked for."""
        config = self.config
        labels = labels_of(config.num_samples, 10, config.labels, seed=config.seed)
        assert seen.real is not None, "the judge's digits are pictures"
        return accuracy_figure(
            "label accuracy",
            _right(seen.made, torch.tensor(labels)),
            seen.made,
            real_right=_right(seen.real, real_labels),
        )


def _right(seen: Collected, labels: Tensor) -> Tensor:
    assert seen.logits is not None, "the digits' extractor has logits"
    return seen.logits.argmax(1) == labels


def build(config: Config) -> DigitsSuite:
    return DigitsSuite(config)
