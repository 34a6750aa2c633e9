"""What every rule of update shares, and the one by default: AdamW on named flat fp32 ranges."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from regscale.config import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The paper's values by default: constant 1e-4 from the first step.

    `muon` is for the matrices of the blocks, and AdamW for the rest; `adamw8bit` is AdamW whose
    moments take one byte each.
    """

    rule: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    decay_steps: int | None = None  # where a cosine reaches final_ratio
    final_ratio: float = 0.0  # of learning_rate, at the end of a cosine

    def __post_init__(self) -> None:
        for key in ("learning_rate", "eps", "max_grad_norm"):
            if not getattr(self, key) > 0:
                raise Invalid(key, "is positive", found=getattr(self, key), fix="Give more than 0.")
        for key in ("weight_decay", "warmup_steps", "final_ratio"):
            if not getattr(self, key) >= 0:
                raise Invalid(key, "is not negative", found=getattr(self, key), fix="0: none.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Invalid(
                "betas", "are within [0, 1)", found=list(self.betas), fix="The paper: [0.9, 0.999]."
            )
        if self.schedule == "cosine" and self.decay_steps is None:
            raise Invalid(
                "decay_steps",
                "says where the cosine ends",
                found=None,
                fix="Write decay_steps: ${training.num_steps}.",
            )


class Update(NamedTuple):
    """What a rule has to know of one update besides the gradients."""

    number: int  # of updates before it
    rate: float
    factor: Tensor  # () what gradients are multiplied with: clip and loss scale
    applied: Tensor  # () bool: where False, weights, moments and counts keep their bits


Zeros = Callable[[Tensor], Tensor]  # makes what a moment begins with, like its range


class Rule(Protocol):
    """How weights follow from gradients. It never waits for the device (Metal's AdamW aside)."""

    counts: dict[str, Tensor]  # of updates of each range, () fp32

    def step(self, gradients: Mapping[str, Tensor], update: Update) -> None:
        """Change weights and moments of these ranges; gradients may be overwritten."""
        ...

    def moments(self, name: str) -> dict[str, Tensor]:
        """Of a range, by their torch names: (stop - start,) fp32; what is written holds."""
        ...

    def settle(self) -> None:
        """Take over what was written into moments that are still in someone's hands."""
        ...


def learning_rate(config: Config, step: int) -> float:
    """The rate of update `step`, counted from 0: linear warm-up, then constant or cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant" or config.decay_steps is None:
        return config.learning_rate
    length = max(config.decay_steps - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / length, 1.0)
    share = (1 + cos(pi * done)) / 2
    return config.learning_rate * (config.final_ratio + (1 - config.final_ratio) * share)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients are multiplied with so that their norm is at most `max_norm`."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


class AdamW:
    """Torch's fused AdamW: clip, loss scale and skip happen inside its kernel."""

    def __init__(
        self, config: Config, masters: Mapping[str, Tensor], zeros: Zeros = torch.zeros_like
    ) -> None:
        self._masters = dict(masters)
        self._optimizer: Any = _fused(config, self._masters.values(), zeros)
        self._state = {name: self._optimizer.state[p] for name, p in self._masters.items()}
        self.counts: dict[str, Tensor] = {n: state["step"] for n, state in self._state.items()}

    def step(self, gradients: Mapping[str, Tensor], update: Update) -> None:
        optimizer = self._optimizer
        for name, master in self._masters.items():
            master.grad = gradients.get(name)
        for group in optimizer.param_groups:
            group["lr"] = update.rate
        if scales_inside(update):
            optimizer.grad_scale = 1 / update.factor
            optimizer.found_inf = (~update.applied).float()
            optimizer.step()
        elif bool(update.applied):
            torch._foreach_mul_([g for g in gradients.values() if g.numel()], update.factor)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def moments(self, name: str) -> dict[str, Tensor]:
        return {key: value for key, value in self._state[name].items() if key != "step"}

    def settle(self) -> None:
        """Nothing: the moments themselves are handed out."""


def scales_inside(update: Update) -> bool:
    """Whether the fused kernel takes a factor and skips; Metal's does not."""
    return update.factor.device.type != "mps"


def _fused(config: Config, parameters: Iterable[Tensor], zeros: Zeros) -> torch.optim.AdamW:
    """With its state in place, so that a checkpoint can be read into it."""
    optimizer = torch.optim.AdamW(
        list(parameters),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": zeros(p),
                "exp_avg_sq": zeros(p),
            }
    return optimizer
