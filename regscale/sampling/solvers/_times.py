"""Time grids of the solvers with fixed steps."""

from dataclasses import dataclass

from regscale.config import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsConfig:
    """A number of steps."""

    num_steps: int = 250

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise Invalid("num_steps", "is positive", found=self.num_steps, fix="Give 1 or more.")


def uniform_times(start: float, stop: float, num_steps: int) -> list[float]:
    """num_steps + 1 evenly spaced times, both ends included."""
    return [start + (stop - start) * i / num_steps for i in range(num_steps + 1)]
