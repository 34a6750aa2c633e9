"""ImageNet at 256 x 256 as ADM measured it: 50,000 images against VIRTUAL_imagenet256_labeled.npz.

FID, sFID, Inception Score, precision and recall of one file; other extractors beside them.
"""

from dataclasses import dataclass, field
from typing import Any

from regscale.config import Invalid, kind_of, plugin, slots
from regscale.evaluation.collecting import Place
from regscale.evaluation.extractors import Extractor
from regscale.evaluation.judging import figures
from regscale.evaluation.pictures import Pictures
from regscale.evaluation.real import held_out_of, references_of
from regscale.evaluation.suites import Outcome
from regscale.evaluation.suites._classes import Labels, seeds_of, wanted_of
from regscale.sampling.many import Wanted

PACKAGE = "regscale.evaluation.extractors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`references` by extractor; `all` stands for those that have none of their own.

    `held_out` likewise, files or folders of real pictures that no reference holds: gives FDr.
    """

    num_samples: int = 50_000
    labels: Labels = "random"
    seed: int = 0
    extractors: dict[str, Any] = slots(PACKAGE)  # empty: inception
    references: dict[str, str] = field(default_factory=dict)
    held_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_samples < 10:
            raise Invalid("num_samples", "is 10 or more", found=self.num_samples, fix="Try 50000.")
        if not self.references:
            raise Invalid(
                "references",
                "names a file of statistics",
                found="none",
                fix="Give references.all=VIRTUAL_imagenet256_labeled.npz, or make one: "
                "python -m regscale.evaluate reference SHARDS --size 256 --out FILE.npz.",
            )


class ImageNet256:
    """Classes to pictures to features to distances; what is wrong in the settings is told before
    anything is drawn."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.extractors, self.references = built(config.extractors), references_of(config)
        self.labels, self.seeds = config.labels, seeds_of(config.num_samples, config.seed)

    def wanted(self, num_classes: int | None) -> list[Wanted]:
        config = self.config
        return wanted_of(config.num_samples, num_classes, config.labels, seed=config.seed)

    def measure(self, pictures: Pictures, place: Place) -> Outcome:
        beside = held_out_of(self.config, size=pictures.shape[1], cluster=place.cluster)
        found, _ = figures(self.extractors, self.references, pictures, place, held_out=beside)
        return Outcome(figures=found)


def built(extractors: dict[str, Any]) -> dict[str, Extractor]:
    """Of a config's section; Inception where it is empty."""
    chosen = extractors or {"inception": plugin(PACKAGE, "inception").Config()}
    return {name: _extractor(name, config) for name, config in chosen.items()}


def _extractor(name: str, config: Any) -> Extractor:
    try:
        extractor: Extractor = plugin(PACKAGE, kind_of(config)).build(config)
    except Invalid as error:
        key = f"extractors.{name}.{error.key}"
        raise Invalid(key, error.what, found=error.found, fix=error.fix) from error
    return extractor


def build(config: Config) -> ImageNet256:
    return ImageNet256(config)
