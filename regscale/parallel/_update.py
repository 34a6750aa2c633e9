"""The update that every engine makes: AdamW on named flat fp32 ranges, with clip, scale and skip.

An engine says where its weights lie and how squared norms add up over ranks. So engines differ in
placement alone, never in arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regscale.parallel import StepResult
from regscale.parallel._optimizer import Config, adamw, clip_factor, learning_rate
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
    ) -> None:
        self._settings, self._masters, self._total = settings, dict(masters), total
        self._one = next(iter(self._masters.values())).new_ones(())
        self._optimizer: Any = adamw(settings, self._masters.values())
        self._inside = self._one.device.type != "mps"  # Metal's fused update knows no skip
        self._scale = LossScale(self._one.device) if scaled else None
        self._updates = 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss if self._scale is None else loss * self._scale.value

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor | None]) -> StepResult:
        """Take the flat gradients of the ranges; what has none keeps weights and moments.

        Clipping, loss scale and the skip of a non-finite step happen inside the fused update, so
        the host never waits for the device.
        """
        optimizer, held = self._optimizer, []
        for name, master in self._masters.items():
            master.grad = gradients.get(name)
            held += [] if master.grad is None or not master.numel() else [master.grad]
        scale = self._one if self._scale is None else self._scale.value
        norm = self._norm(held) / scale
        applied = norm.isfinite()
        factor = clip_factor(norm, self._settings.max_grad_norm) / scale
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self._settings, self._updates)
        if self._inside:
            optimizer.grad_scale, optimizer.found_inf = 1 / factor, (~applied).float()
            optimizer.step()
        elif bool(applied):
            torch._foreach_mul_(held, factor)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
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
        if name not in self._masters:
            return {}
        state = self._optimizer.state[self._masters[name]]
        return {key: value for key, value in state.items() if key != "step"}

    def progress(self) -> dict[str, Any]:
        """Small values that go with the ranges. JSON."""
        steps = {n: float(self._optimizer.state[m]["step"]) for n, m in self._masters.items()}
        scale = None if self._scale is None else self._scale.state()
        return {"updates": self._updates, "optimizer_steps": steps, "loss_scale": scale}

    def restore(self, progress: Mapping[str, Any]) -> None:
        self._updates = progress["updates"]
        for name, master in self._masters.items():
            self._optimizer.state[master]["step"].fill_(progress["optimizer_steps"][name])
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
