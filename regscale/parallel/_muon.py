"""Muon: the momentum of each matrix of the blocks, with all its singular values near one.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the rate of Liu et al. (arXiv
2502.16982), as `torch.optim.Muon`. Ranks share the work: each makes other matrices orthogonal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regscale.parallel._optimizer import AdamW, Config, Update
from regscale.parallel._precision import Precision

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the slope at zero is the largest
NUM_ITERATIONS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, nearly: five quintic Newton-Schulz iterations in its dtype, which
    bring singular values into about [0.7, 1.2]."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def rate_factor(shape: tuple[int, int]) -> float:
    """What makes the root mean square of an update that of AdamW, about 0.2, so that learning
    rate and weight decay are those of AdamW (2502.16982, eq. 4)."""
    return 0.2 * sqrt(max(shape))


@dataclass(frozen=True, slots=True)
class Matrices:
    """The weights that Muon is for, and the ranks among which the work is dealt out.

    With `cut` a rank holds some rows of each, as `torch.chunk` cuts them; else all. Where blocks
    compute in low precision the iterations are in bf16, as torch's are. They enlarge what is
    rounded off, up to 3.4^5 times, so an fp32 run has them in fp32.
    """

    shapes: Mapping[str, tuple[int, int]]
    group: Any = None  # of ranks; None: this one works alone
    cut: bool = False
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def of(cls, model: Any, precision: Precision, group: Any, *, cut: bool = False) -> Matrices:
        """The matrices of a model's blocks; embeddings and heads are none of them."""
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        named = ((f"blocks.{n}", p) for n, p in model.blocks.named_parameters() if p.ndim == 2)
        return cls({n: (p.shape[0], p.shape[1]) for n, p in named}, group, cut, dtype)

    def rounds(self, names: Iterable[str]) -> Iterator[list[str]]:
        """As many matrices as there are ranks, of like size; the same on every rank."""
        order = sorted(names, key=lambda name: -self.shapes[name][0] * self.shapes[name][1])
        size = 1 if self.group is None else self.group.size()
        return (order[i : i + size] for i in range(0, len(order), size))

    def orthogonal(self, updates: Mapping[str, Tensor]) -> list[Tensor]:
        """Of one round: this rank's flat ranges, in `dtype`."""
        flat = [update.to(self.dtype) for update in updates.values()]
        shapes = [self.shapes[name] for name in updates]
        if self.group is None:
            return [_flat(*each) for each in zip(flat, shapes, strict=True)]
        return self._exchanged(flat, shapes) if self.cut else self._shared(flat, shapes)

    def _shared(self, flat: list[Tensor], shapes: list[tuple[int, int]]) -> list[Tensor]:
        rank, made = self.group.rank(), [torch.empty_like(each) for each in flat]
        if rank < len(flat):
            made[rank] = _flat(flat[rank], shapes[rank])
        for number, each in enumerate(made):
            dist.broadcast(each, group=self.group, group_src=number)
        return made

    def _exchanged(self, flat: list[Tensor], shapes: list[tuple[int, int]]) -> list[Tensor]:
        """Rows go to the rank that works on their matrix, and come back."""
        rank, size, sent = self.group.rank(), self.group.size(), torch.cat(flat)
        given = [each.numel() for each in flat] + [0] * (size - len(flat))
        taken = _parts(shapes[rank], size) if rank < len(flat) else [0] * size
        whole = sent.new_empty(sum(taken))
        dist.all_to_all_single(whole, sent, taken, given, group=self.group)
        if rank < len(flat):
            whole = _flat(whole, shapes[rank])
        made = torch.empty_like(sent)
        dist.all_to_all_single(made, whole, given, taken, group=self.group)
        return list(made.split(given[: len(flat)]))


class Muon:
    """The rule: Muon for the matrices, AdamW for all other weights."""

    def __init__(self, config: Config, masters: Mapping[str, Tensor], matrices: Matrices) -> None:
        self._decay, self._matrices = config.weight_decay, matrices
        self._masters = {n: m for n, m in masters.items() if n in matrices.shapes}
        self._rest = AdamW(config, {n: m for n, m in masters.items() if n not in self._masters})
        self._momentum = {name: torch.zeros_like(m) for name, m in self._masters.items()}
        own = {name: m.new_zeros(()) for name, m in self._masters.items()}
        self.counts: dict[str, Tensor] = own | self._rest.counts

    def step(self, gradients: Mapping[str, Tensor], update: Update) -> None:
        rest = {n: g for n, g in gradients.items() if n not in self._masters}
        self._rest.step(rest, update)
        for names in self._matrices.rounds(n for n in gradients if n in self._masters):
            updates = {name: self._average(name, gradients[name], update) for name in names}
            made = self._matrices.orthogonal(updates)
            for name, direction in zip(names, made, strict=True):
                self._apply(name, direction, update)

    def moments(self, name: str) -> dict[str, Tensor]:
        own = name in self._masters
        return {"momentum_buffer": self._momentum[name]} if own else self._rest.moments(name)

    def settle(self) -> None:
        """Nothing: the moments themselves are handed out."""

    def _average(self, name: str, gradient: Tensor, update: Update) -> Tensor:
        """Nesterov's: momentum <- 0.95 momentum + 0.05 g, of which 0.95, and 0.05 g again."""
        held, gradient = self._momentum[name], gradient * update.factor
        fresh = held.lerp(gradient, 1 - MOMENTUM)
        held.copy_(torch.where(update.applied, fresh, held))
        return gradient.lerp(fresh, MOMENTUM)

    def _apply(self, name: str, direction: Tensor, update: Update) -> None:
        master = self._masters[name]
        rate = update.rate * rate_factor(self._matrices.shapes[name])
        kept = master * (1 - update.rate * self._decay)
        master.copy_(torch.where(update.applied, kept.add_(direction, alpha=-rate), master))
        self.counts[name].add_(update.applied)


def _flat(flat: Tensor, shape: tuple[int, int]) -> Tensor:
    return orthogonal(flat.view(shape)).reshape(-1)


def _parts(shape: tuple[int, int], size: int) -> list[int]:
    """Elements of a matrix on each rank."""
    rows, columns = shape
    step = -(-rows // size)
    return [max(min(step, rows - rank * step), 0) * columns for rank in range(size)]
