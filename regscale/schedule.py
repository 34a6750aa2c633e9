"""The time of each leaf as a function of one u: 1 at the start of sampling, 0 at its end.

With L the largest lead, tau = (1 + L) u runs from 1 + L to 0. The image is at min(tau, 1); a target
with lead l is at tau - l, within [0, 1], so it is clean while the image still has time l to go
(SFD, arXiv 2512.04926). A shift s takes t to s t / (1 + (s - 1) t) (SD3, 2403.03206, eq. 23); of
the grid, it is that of the values of u at which a solver with fixed steps looks.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeVar

from torch import Tensor

from regscale.config import Invalid
from regscale.types import LeafFloats, Times

Kind = Literal["same", "shift", "lead", "independent"]
Number = TypeVar("Number", float, Tensor)
Segment = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How the time of a target's tokens follows that of the image.

    same: it is that time. shift: it is that time shifted by `shift`; below 1 tokens are cleaner
    than the image. lead: tokens go ahead by `lead`. independent: trained at times of their own, so
    that they may be given, or sampled ahead of the image by any `lead`; by 1 they come first.
    """

    kind: Kind = "same"
    shift: float = 1.0
    lead: float = 0.0

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise Invalid("shift", "is positive", found=self.shift, fix="1 is none.")
        if not 0 <= self.lead <= 1:
            raise Invalid("lead", "is within [0, 1]", found=self.lead, fix="0 is none.")
        self._belongs("shift", 1.0, ("shift",))
        self._belongs("lead", 0.0, ("lead", "independent"))

    def _belongs(self, key: str, none: float, kinds: tuple[Kind, ...]) -> None:
        if getattr(self, key) != none and self.kind not in kinds:
            raise Invalid(
                key,
                f"belongs to a schedule of kind {' or '.join(kinds)}",
                found=f"kind {self.kind}",
                fix=f"Set kind: {kinds[0]}, or leave {key} out.",
            )

    @property
    def has_own_times(self) -> bool:
        """Whether training draws a time for this target alone."""
        return self.kind == "independent"

    @property
    def may_be_given(self) -> bool:
        """Whether the image was trained at every time beside clean tokens of this target."""
        return self.kind == "independent" or self.lead == 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """Of the image and all entangled targets; those at the places of `held` stay at time 0."""

    targets: tuple[Config, ...]
    held: frozenset[int] = frozenset()
    grid_shift: float = 1.0

    def grid(self, num_steps: int, *, stop: float = 0.0) -> list[float]:
        """num_steps + 1 values of u from 1 to `stop`, evenly spaced before they are shifted."""
        last = shifted(stop, 1 / self.grid_shift)
        even = (1.0 + (last - 1.0) * i / num_steps for i in range(num_steps + 1))
        return [shifted(u, self.grid_shift) for u in even]

    def hold(self, places: Collection[int]) -> "Schedule":
        """The schedule of a sampling to which the tokens of these targets are given."""
        return replace(self, held=frozenset(places))

    def tokens_first(self) -> "Schedule":
        """The schedule of a sampling in which every independent target comes before the image."""
        first = (replace(t, lead=1.0) if t.has_own_times else t for t in self.targets)
        return replace(self, targets=tuple(first))

    @property
    def own_times(self) -> tuple[int, ...]:
        """The places of the independent targets."""
        return tuple(i for i, t in enumerate(self.targets) if t.has_own_times)

    @property
    def together(self) -> bool:
        """Whether all leaves always have one time in sampling."""
        return not self.held and all(t.shift == 1 and t.lead == 0 for t in self.targets)

    def training(self, u: Tensor, own: Iterable[Tensor] = ()) -> tuple[Times, Times | None]:
        """Times of a step, and 1 where a leaf moves, 0 where it waits or is done: (B,) each.

        `own` are the draws of the independent targets, in their order. None where all move.
        """
        draws = iter(own)
        lead = max((t.lead for t in self.targets if not t.has_own_times), default=0.0)
        raws = [next(draws) if t.has_own_times else _raw(u, t.lead, lead) for t in self.targets]
        image = _raw(u, 0.0, lead)
        shifts = [t.shift for t in self.targets]
        times = Times(
            image.clamp(max=1),
            tuple(shifted(raw.clamp(0, 1), s) for raw, s in zip(raws, shifts, strict=True)),
        )
        if lead == 0:
            return times, None
        return times, Times(image, tuple(raws)).map(lambda t: ((t > 0) & (t < 1)).to(t.dtype))

    def times(self, u: float) -> LeafFloats:
        """Of all leaves when sampling is at u: exactly 1 at u = 1 and 0 at u = 0."""
        if self.together:
            return LeafFloats(u, (u,) * len(self.targets))
        tokens = (
            0.0 if lead is None else shifted(min(max(_raw(u, lead, self._lead), 0.0), 1.0), shift)
            for lead, shift in self._leaves
        )
        return LeafFloats(min(_raw(u, 0.0, self._lead), 1.0), tuple(tokens))

    def beside(self, t: float) -> LeafFloats:
        """Of all leaves when sampling has the image at t: at 1, when it begins to move."""
        return self.times(t / (1 + self._lead))

    def rates(self, u: float, segment: Segment) -> LeafFloats:
        """d time / du of each leaf within a segment: 0 where it waits, is done or is held."""
        middle = (segment[0] + segment[1]) / 2

        def rate(lead: float | None, shift: float) -> float:
            if lead is None or not 0 < _raw(middle, lead, self._lead) < 1:
                return 0.0
            raw = min(max(_raw(u, lead, self._lead), 0.0), 1.0)
            return (1 + self._lead) * shift / (1 + (shift - 1) * raw) ** 2

        return LeafFloats(rate(0.0, 1.0), tuple(rate(*leaf) for leaf in self._leaves))

    def segments(self) -> list[Segment]:
        """Of u, from 1 down to 0: within each, every leaf either stands still or moves smoothly."""
        length = 1 + self._lead
        leads = {0.0, *(lead for lead, _ in self._leaves if lead is not None)}
        kinks = {u for lead in leads for u in (lead / length, (1 + lead) / length) if 0 < u < 1}
        return list(pairwise(sorted({0.0, 1.0, *kinks}, reverse=True)))

    def last_with(self, t: float) -> float:
        """The least u at which a leaf that moves is still at time t."""
        ends = [shifted(t, 1 / shift) + lead for lead, shift in self._leaves if lead is not None]
        return min([t, *ends]) / (1 + self._lead)

    @property
    def _leaves(self) -> list[tuple[float | None, float]]:
        """(lead or None where held, shift) of each target."""
        pairs = enumerate(self.targets)
        return [(None if i in self.held else t.lead, t.shift) for i, t in pairs]

    @property
    def _lead(self) -> float:
        return max((lead for lead, _ in self._leaves if lead is not None), default=0.0)


def _raw(u: Number, lead: float, longest: float) -> Number:
    """tau - lead, without rounding at the ends: at least 1 at u = 1, at most 0 at u = 0."""
    return u if longest == 0 else u * (1 + (longest - lead)) - lead * (1 - u)


def shifted(t: Number, shift: float) -> Number:
    """s t / (1 + (s - 1) t), without rounding at 0 and 1: a shift above 1 leads towards noise."""
    return t if shift == 1 else t / (t + (1 - t) / shift)
