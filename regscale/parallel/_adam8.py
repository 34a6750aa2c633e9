"""AdamW whose moments are kept as 8-bit codes of blocks of 256 (Dettmers et al., arXiv 2110.02861).

A code stands for a power of two's fraction of its block's largest value, so small values keep their
relative precision and a second moment never becomes zero beside larger ones. Libraries offer such
moments for CUDA alone (bitsandbytes) or by compiling each update (torchao).
"""

from collections.abc import Mapping
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.optim.adamw import adamw

from regscale.parallel._optimizer import Config, Update, scales_inside

BLOCK = 256
RANGE = {"exp_avg": 16, "exp_avg_sq": 32}  # log2 of the largest to the smallest, but zero
SMALLEST = 2.0**-90  # of a block's largest value; below, it counts as zero, for eps hides it
# Steps of additive recurrences: their multiples modulo 1 are spread evenly.
PLACE, TIME = 0.6180339887498949, 0.4142135623730951


def table(moment: str) -> Tensor:
    """The values of a moment's codes, of a block whose largest is 1: rising, (255,) or (256,)."""
    signed = moment == "exp_avg"
    exponents = torch.linspace(-RANGE[moment], 0, 127 if signed else 256, dtype=torch.float64)
    values = exponents.exp2().float()
    return torch.cat([-values.flip(0), values.new_zeros(1), values]) if signed else values


class Quantised:
    """A flat fp32 range in a quarter of its bytes. It begins with zeros."""

    def __init__(self, like: Tensor, values: Tensor) -> None:
        self._size, self._table = like.numel(), values
        self.codes, self.scales = self._coded(torch.zeros_like(like), None)

    def get(self) -> Tensor:
        """(n,) fp32. To `set` it changes no bit: a block's largest value is kept exactly."""
        return (self._table[self.codes.int()] * self.scales).view(-1)[: self._size]

    def set(
        self, values: Tensor, dither: Tensor | None = None, applied: Tensor | None = None
    ) -> None:
        """Round to the nearest; with `dither` (256,) in [0, 1) to the upper of two codes where the
        distance from the lower exceeds it. Where `applied` is False, nothing."""
        codes, scales = self._coded(values, dither)
        if applied is not None:
            codes = torch.where(applied, codes, self.codes)
            scales = torch.where(applied, scales, self.scales)
        self.codes, self.scales = codes, scales

    def _coded(self, values: Tensor, dither: Tensor | None) -> tuple[Tensor, Tensor]:
        """(blocks, 256) uint8 and (blocks, 1) fp32."""
        blocks = pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(1, keepdim=True)
        scales = torch.where(largest < SMALLEST, 0.0, largest)
        unit = blocks / torch.where(scales == 0, 1.0, scales)
        upper = torch.bucketize(unit, self._table, out_int32=True).clamp(1, len(self._table) - 1)
        low, high = self._table[upper - 1], self._table[upper]
        share = (unit - low) / (high - low)
        return (upper - 1 + (share > (0.5 if dither is None else dither))).to(torch.uint8), scales


class Adam8:
    """The rule: AdamW's fused update of fp32 moments that exist for one range at a time.

    A second moment changes by a thousandth at a time, less than a code: rounded to the nearest it
    would stay where it is. So it is rounded up as often as it is above, by a dither of update and
    place alone: no state to save, and the same bits after any restart.
    """

    def __init__(self, config: Config, masters: Mapping[str, Tensor]) -> None:
        self._config, self._masters = config, dict(masters)
        device = next(iter(self._masters.values())).device
        tables = {moment: table(moment).to(device) for moment in RANGE}
        self._state = {
            (name, moment): Quantised(master, values)
            for name, master in self._masters.items()
            for moment, values in tables.items()
        }
        places = torch.arange(BLOCK, dtype=torch.float64) * PLACE % 1
        self._places = places.float().to(device)
        self._lent: dict[tuple[str, str], finalize[Any, Any]] = {}
        self.counts: dict[str, Tensor] = {n: m.new_zeros(()) for n, m in self._masters.items()}

    def step(self, gradients: Mapping[str, Tensor], update: Update) -> None:
        self.settle()
        inside: dict[str, Any] = {}
        if scales_inside(update):
            inside["grad_scale"] = 1 / update.factor
            inside["found_inf"] = (~update.applied).float()
        elif bool(update.applied):
            torch._foreach_mul_([g for g in gradients.values() if g.numel()], update.factor)
        else:
            return
        dither = (self._places + update.number * TIME % 1) % 1
        for name, gradient in gradients.items():
            state = [self._state[name, moment] for moment in RANGE]
            moments = [each.get() for each in state]
            self._update(name, gradient, moments, update.rate, inside)
            for each, values in zip(state, moments, strict=True):
                each.set(values, dither, update.applied)

    def moments(self, name: str) -> dict[str, Tensor]:
        return {moment: self._lend(name, moment) for moment in RANGE}

    def settle(self) -> None:
        for lent in self._lent.values():
            lent()
        self._lent.clear()

    def _update(
        self,
        name: str,
        gradient: Tensor,
        moments: list[Tensor],
        rate: float,
        inside: Mapping[str, Any],
    ) -> None:
        adamw(
            [self._masters[name]],
            [gradient],
            [moments[0]],
            [moments[1]],
            [],
            [self.counts[name]],
            fused=True,
            amsgrad=False,
            beta1=self._config.betas[0],
            beta2=self._config.betas[1],
            lr=rate,
            weight_decay=self._config.weight_decay,
            eps=self._config.eps,
            maximize=False,
            **inside,
        )

    def _lend(self, name: str, moment: str) -> Tensor:
        """A moment in fp32, until the next update. What was written into it is taken over when
        the last reference to it goes (a view of it is none), or by `settle`; so one range at a time
        takes memory."""
        place = (name, moment)
        alive = self._lent[place].peek() if place in self._lent else None
        if alive is not None:
            return alive[0]  # type: ignore[no-any-return]
        held = self._state[place]
        values = held.get()
        same = values.detach()  # its storage and version, without keeping it
        self._lent[place] = finalize(values, _take, held, same, same._version)
        self._lent[place].atexit = False
        return values


def _take(held: Quantised, values: Tensor, version: int) -> None:
    if values._version != version:
        held.set(values)
