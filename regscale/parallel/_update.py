"""The update that every engine makes of named flat fp32 ranges, with clip, scale and skip.

An engine says where its weights lie and how squared norms add up over ranks. So engines differ in
placement alone, never in arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regscale.parallel import StepResult
from regscale.parallel._adam8 import Adam8
from regscale.parallel._muon import Matrices, Muon
from regscale.parallel._optimizer import (
    AdamW,
    Config,
    Rule,
    Update,
    Zeros,
    clip_factor,
    learning_rate,
)
from regscale.parallel._scaler import LossScale

Total = Callable[[Tensor], Tensor]  # the sum of a () over the ranks that share the weights


class Updater:
    """Moments and updates of the ranges that this rank holds, empty ones included."""

    def __init__(
        self,
        settings: Config,
        masters: Mapping[str, Tensor],  # name -> (stop - start,) fp32, live
        *,
        total: Total | None = None,  # None: this rank holds whole gradients
        scaled: bool = False,  # fp16
        matrices: Matrices | None = None,  # for muon
        zeros: Zeros = torch.zeros_like,  # for adamw
    ) -> None:
        self._settings, self._masters, self._total = settings, dict(masters), total
        self._one = next(iter(self._masters.values())).new_ones(())
        self._rule = _rule(settings, self._masters, matrices, zeros)
        self._scale = LossScale(self._one.device) if scaled else None
        self._updates = 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss if self._scale is None else loss * self._scale.value

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor | None]) -> StepResult:
        """Take the flat gradients of the ranges; what has none keeps weights and moments.

        Clipping, loss scale and the skip of a non-finite step happen inside the rule, so the host
        never waits for the device.
        """
        present = {n: g for n in self._masters if (g := gradients.get(n)) is not None}
        scale = self._one if self._scale is None else self._scale.value
        norm = self._norm([g for g in present.values() if g.numel()]) / scale
        applied = norm.isfinite()
        factor = clip_factor(norm, self._settings.max_grad_norm) / scale
        self._rule.step(present, Update(self._updates, self.learning_rate(), factor, applied))
        self._count(applied)
        return StepResult(applied, norm)

    def skip(self) -> StepResult:
        """Count an update that an engine found not finite by itself."""
        applied = torch.zeros_like(self._one, dtype=torch.bool)
        self._count(applied)
        return StepResult(applied, self._one * float("nan"))

    def learning_rate(self) -> float:
        return learning_rate(self._settings, self._updates)

    def moments(self, name: str) -> dict[str, Tensor]:
        """By their torch names; empty for what is not trained."""
        return self._rule.moments(name) if name in self._masters else {}

    def progress(self) -> dict[str, Any]:
        """Small values that go with the ranges. JSON."""
        steps = {name: float(self._rule.counts[name]) for name in self._masters}
        scale = None if self._scale is None else self._scale.state()
        return {"updates": self._updates, "optimizer_steps": steps, "loss_scale": scale}

    def restore(self, progress: Mapping[str, Any]) -> None:
        self._updates = progress["updates"]
        for name in self._masters:
            self._rule.counts[name].fill_(progress["optimizer_steps"][name])
        self._rule.settle()
        if self._scale is not None and progress["loss_scale"] is not None:
            self._scale.restore(progress["loss_scale"])

    def _norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients of all ranks: (), fp32. Summed in float64, so that it does not depend
        on how they are cut."""
        dtype = torch.float32 if self._one.device.type == "mps" else torch.float64
        squares = self._one.new_zeros((), dtype=dtype)
        if gradients:
            norms = torch._foreach_norm(list(gradients), 2, dtype=dtype)
            squares = torch.stack(norms).square().sum()
        if self._total is not None:
            squares = self._total(squares)
        return squares.sqrt().to(torch.float32)

    def _count(self, applied: Tensor) -> None:
        if self._scale is not None:
            self._scale.update(applied)
        self._updates += 1


def _rule(
    settings: Config, masters: Mapping[str, Tensor], matrices: Matrices | None, zeros: Zeros
) -> Rule:
    if settings.rule == "adamw8bit":
        return Adam8(settings, masters)
    if settings.rule == "muon":
        assert matrices is not None, "an engine that cannot give whole matrices refuses muon"
        return Muon(settings, masters, matrices)
    return AdamW(settings, masters, zeros)
