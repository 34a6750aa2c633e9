"""Sums of what the steps since the last report did, on the device: one transfer a report."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regscale.parallel import StepResult


@dataclass
class Window:
    """Sums of named quantities over steps, and the updates skipped for a non-finite gradient."""

    names: tuple[str, ...]
    device: torch.device
    steps: int = 0
    in_a_row: int = 0  # skipped updates up to the last report
    _sums: Tensor = field(init=False)
    _skipped: Tensor = field(init=False)  # [in this window, in a row]

    def __post_init__(self) -> None:
        self._sums = torch.zeros(len(self.names), device=self.device, dtype=torch.float32)
        self._skipped = torch.zeros(2, device=self.device)

    @torch.no_grad()
    def add(self, values: list[Tensor], result: StepResult) -> None:
        """Take one step's values, in the order of `names`."""
        self._sums += torch.stack([v.detach().float() for v in values])
        missed = (~result.applied).float()
        total, row = self._skipped
        self._skipped = torch.stack([total + missed, (row + 1) * missed])
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Means over the window and the number of skipped updates; the next window begins."""
        sums, (skipped, row) = self._sums.tolist(), self._skipped.tolist()
        means = {n: s / max(self.steps, 1) for n, s in zip(self.names, sums, strict=True)}
        self.steps, self.in_a_row = 0, int(row)
        self._sums.zero_()
        self._skipped[0] = 0
        return means | {"skipped": skipped}

    def state(self) -> dict[str, object]:
        """JSON values from which `restore` goes on."""
        return {
            "steps": self.steps,
            "sums": self._sums.tolist(),
            "skipped": self._skipped.tolist(),
        }

    def restore(self, state: dict[str, object]) -> None:
        sums = torch.tensor(state["sums"], device=self.device, dtype=torch.float32)
        if sums.shape == self._sums.shape:
            self.steps, self._sums = int(str(state["steps"])), sums
            self._skipped = torch.tensor(state["skipped"], device=self.device)
