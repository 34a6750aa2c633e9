"""Several sources by weight: of each 4,096 samples of the run, every source gives its share."""

from dataclasses import dataclass
from typing import Any

from regscale.config import Invalid, kind_of, plugin, slots
from regscale.data._mix import Mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`sources: {photos: {kind: shards, ...}, drawings: {...}}`, `weights: {photos: 3, ...}`."""

    weights: dict[str, float]  # of every source; only their ratios matter
    sources: dict[str, Any] = slots("regscale.data")

    def __post_init__(self) -> None:
        if not self.sources or set(self.sources) != set(self.weights):
            raise Invalid(
                "weights",
                "names every source once",
                found=f"weights {sorted(self.weights)}, sources {sorted(self.sources)}",
                fix="Write weights: {name: number} for each of sources.",
            )
        for name, weight in self.weights.items():
            if not weight > 0 or weight == float("inf"):
                raise Invalid(
                    f"weights.{name}", "is positive", found=weight, fix="Leave the source out."
                )


def build(config: Config) -> Mix:
    """The sources as one, in the order of their names; nothing is read yet."""
    names = sorted(config.sources)
    sources = {n: plugin("regscale.data", kind_of(config.sources[n])) for n in names}
    return Mix({n: sources[n].build(config.sources[n]) for n in names}, config.weights)
