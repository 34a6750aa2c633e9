"""The loss scale of fp16, kept on the device: halved at an overflow, doubled after a good while."""

import torch
from torch import Tensor

GROWTH_INTERVAL = 2000


class LossScale:
    """Dynamic loss scaling (Micikevicius et al., arXiv 1710.03740) without host synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(2.0**16, device=device)
        self._good = torch.zeros((), device=device)  # updates since the last change

    def update(self, applied: Tensor) -> None:
        """Take the outcome of one update, a () bool."""
        good = torch.where(applied, self._good + 1, 0)
        grow = good >= GROWTH_INTERVAL
        factor = torch.where(applied, torch.where(grow, 2.0, 1.0), 0.5)
        self.value = self.value * factor
        self._good = torch.where(grow, 0, good)

    def state(self) -> list[float]:
        """[scale, updates since its last change]."""
        return [float(self.value), float(self._good)]

    def restore(self, state: list[float]) -> None:
        self.value, self._good = (torch.tensor(x, device=self.value.device) for x in state)
