"""Where a figure comes from: everything that has to be equal before two figures are ranked."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regscale.evaluation.metrics import Figure

COMPARED = ("checkpoint",)  # what a comparison is about


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How a set of pictures was made. None is "not known", as of pictures made elsewhere."""

    sampler: str | None = None
    steps: str | None = None
    diffusion: str | None = None  # w(t) of a stochastic sampler, or "none"
    sampling: str | None = None  # the other settings of the sampler, as JSON
    guidance_scale: float | None = None
    guidance_interval: str | None = None
    token_guidance_scale: float | None = None
    token_guidance_interval: str | None = None
    labels: str | None = None  # or the prompts, with the hash of their file
    seeds: str | None = None
    unit: int | None = None  # images that went through the network together
    precision: str | None = None
    attention: str | None = None
    checkpoint: str | None = None  # run, step, and the manifest's hash; without, during training
    ema: float | None = None
    regscale: str | None = None
    pictures: str | None = None  # of pictures made elsewhere: a hash of them all

    def values(self) -> dict[str, Any]:
        """By name, as a JSON object holds them."""
        return asdict(self)


def provenance(making: Making, figure: Figure) -> dict[str, Any]:
    """All of a figure's origin, flat."""
    return {
        **making.values(),
        "samples": figure.num_samples,
        "evaluator": figure.evaluator,
        "reference": figure.reference,
    }


def step_of(values: Mapping[str, Any]) -> int | None:
    """Of the checkpoint in a figure's origin; None of pictures made elsewhere."""
    found = re.search(r" step (\d+)\b", values.get("checkpoint") or "")
    return None if found is None else int(found[1])


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two figures differ, besides what is compared.

    What one does not know differs too, except where both are of pictures made elsewhere.
    """
    names = [name for name in dict.fromkeys((*a, *b)) if name not in (*COMPARED, "pictures")]
    return {n: (a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n)}
