"""Sums of what the steps since the last report did, on the device: one transfer a report, and one
exchange between ranks."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regscale.cluster import Cluster
from regscale.parallel import StepResult


@dataclass
class Window:
    """Sums of named quantities over steps, and the updates skipped for a non-finite gradient."""

    names: tuple[str, ...]
    cluster: Cluster
    steps: int = 0
    in_a_row: int = 0  # skipped updates up to the last report
    _sums: Tensor = field(init=False)
    _skipped: Tensor = field(init=False)  # [in this window, in a row]

    def __post_init__(self) -> None:
        self._sums = torch.zeros(len(self.names), device=self.cluster.device, dtype=torch.float32)
        self._skipped = torch.zeros(2, device=self.cluster.device)

    @torch.no_grad()
    def add(self, values: list[Tensor], result: StepResult) -> None:
        """Take one step's values, in the order of `names`."""
        self._sums += torch.stack([v.detach().float() for v in values])
        missed = (~result.applied).float()
        total, row = self._skipped
        self._skipped = torch.stack([total + missed, (row + 1) * missed])
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Means over the window and the ranks, and the number of skipped updates; the next window
        begins. Collective."""
        sums, (skipped, row) = self.cluster.mean(self._sums).tolist(), self._skipped.tolist()
        means = {n: s / max(self.steps, 1) for n, s in zip(self.names, sums, strict=True)}
        self.steps, self.in_a_row = 0, int(row)
        self._sums.zero_()
        self._skipped[0] = 0
        return means | {"skipped": skipped}

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` goes on: the sums of each rank. Collective."""
        return {
            "steps": self.steps,
            "sums": self.cluster.gather(self._sums.tolist()),
            "skipped": self._skipped.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """On another number of ranks each takes the mean."""
        sums = torch.tensor(state["sums"], device=self.cluster.device, dtype=torch.float32)
        if sums.shape[1:] != self._sums.shape:
            return
        same = len(sums) == self.cluster.world_size
        self.steps, self._sums = state["steps"], sums[self.cluster.rank] if same else sums.mean(0)
        self._skipped = torch.tensor(state["skipped"], device=self.cluster.device)
