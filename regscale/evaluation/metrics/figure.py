"""A number of an evaluation, with everything needed to compare it with another one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric's value and where it comes from; `str` is the line to print."""

    name: str
    value: float
    num_samples: int
    evaluator: str  # identity of the extractor: kind and hash of weights and preprocessing
    reference: str | None = None  # identity of the statistics compared with; None: there are none
    spread: float | None = None  # standard deviation over the metric's own splits or subsets
    noise_floor: float | None = None  # the metric between two halves of real data
    noise_samples: int | None = None  # in each half; distances of fewer samples are larger
    no_floor: str = ""  # why there is no noise floor, in a phrase

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        floor = self.no_floor or "not measured"
        if self.noise_floor is not None:
            floor = f"{self.noise_floor:.4g}"
        if self.noise_samples is not None:
            floor += f" ({self.noise_samples:,} each)"
        return (
            f"{self.name} {self.value:.4f}{spread}  noise floor {floor}  "
            f"samples {self.num_samples:,}  evaluator {self.evaluator}  "
            f"reference {self.reference or 'none'}"
        )
