"""What a command line says of how pictures are drawn, over what a run says."""

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.sampling.config import check_shift
from regscale.sampling.guidance import Config as GuidanceConfig
from regscale.sampling.guidance import TargetGuidance
from regscale.sampling.sampler import Sampler
from regscale.schedule import Schedule

log = logging.getLogger(__name__)


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Options of every command that draws; each is the run's own where it is left out."""
    add, times = parser.add_argument, ("LOW", "HIGH")
    add("--guidance-scale", type=float, help="of the image; 1 is none")
    add("--guidance-interval", type=float, nargs=2, metavar=times, help="times; 0 is data")
    add("--token-guidance-scale", type=float, help="of all entangled tokens")
    add("--token-guidance-interval", type=float, nargs=2, metavar=times)
    add(
        "--sampling",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the run's section of that name: solver.num_steps=50 precision=bf16",
    )


def add_ways(parser: argparse.ArgumentParser) -> None:
    """Options of how a sampler goes, besides those of guidance."""
    add = parser.add_argument
    add("--negative-prompt", help="a text that guidance leads away from; else the empty one")
    add("--shift", help="of the times of a solver's steps; 'size': by the size of the picture")


def guidance_of(config: GuidanceConfig, options: argparse.Namespace) -> GuidanceConfig:
    """The guidance of a run with what the options change."""
    changes = {
        "scale": options.guidance_scale,
        "token_scale": options.token_guidance_scale,
        "interval": _pair(options.guidance_interval),
        "token_interval": _pair(options.token_guidance_interval),
    }
    return with_guidance(config, {k: v for k, v in changes.items() if v is not None})


def with_guidance(config: GuidanceConfig, changes: Mapping[str, Any]) -> GuidanceConfig:
    """Changed; a value that cannot be is told."""
    try:
        return replace(config, **changes)
    except Invalid as error:
        raise RegscaleError(
            f"guidance {error.key}", error.what, found=error.found, fix=error.fix
        ) from error


def sampler_of(
    sampler: Sampler,
    options: argparse.Namespace,
    *,
    guidance: GuidanceConfig,
    names: Sequence[str],
    enlarged: float,
) -> Sampler:
    """As the options have it. `names` are those of the entangled targets, `enlarged` is the number
    of pixels over that of training."""
    own = target_guidance_of(sampler.target_guidance, names, options)
    negative = None
    if options.negative_prompt is not None:
        negative = sampler.conditioner.parse([options.negative_prompt])
        scales = [guidance.scale, guidance.token_scale, *(target.scale for target in own)]
        if all(scale in (None, 1) for scale in scales):
            log.warning("--negative-prompt does nothing at a guidance scale of 1")
    return replace(
        sampler,
        schedule=_schedule(sampler, options, enlarged),
        target_guidance=own,
        negative=negative,
    )


def _schedule(sampler: Sampler, options: argparse.Namespace, enlarged: float) -> Schedule | None:
    schedule = sampler.schedule
    if schedule is None:
        return None
    if options.tokens_first:
        if not schedule.own_times:
            raise RegscaleError(
                "--tokens-first",
                "needs an entangled target with times of its own",
                found=", ".join(target.kind for target in schedule.targets) or "no target",
                fix="Train with entangle.NAME.schedule.kind=independent.",
            )
        schedule = schedule.tokens_first()
    return replace(schedule, grid_shift=_shift(schedule.grid_shift, options.shift, enlarged))


def _shift(configured: float, asked: str | None, enlarged: float) -> float:
    """`size` keeps what the noise leaves of a picture the same: with m pixels instead of n, eq. 23
    of SD3 (arXiv 2403.03206) shifts times by sqrt(m / n), on top of the configured shift."""
    if asked is None:
        return configured
    if asked == "size":
        return configured * sqrt(enlarged)
    try:
        shift = float(asked)
        check_shift(shift)
    except (ValueError, Invalid) as error:
        raise RegscaleError(
            "--shift", "is a positive number, or 'size'", found=asked, fix="1 is none."
        ) from error
    return shift


def target_guidance_of(
    own: Sequence[TargetGuidance], names: Iterable[str], options: argparse.Namespace
) -> tuple[TargetGuidance, ...]:
    """What targets of these names still say for themselves: options come before a config."""
    given = {
        "scale": options.token_guidance_scale,
        "interval": options.token_guidance_interval,
    }
    left = []
    for name, guidance in zip(names, own, strict=True):
        changes = dict[str, Any]()
        for key, value in given.items():
            if value is not None and getattr(guidance, key) is not None:
                before, option = getattr(guidance, key), f"--token-guidance-{key} {value}"
                log.info("entangle.%s.guidance_%s %s gives way to %s", name, key, before, option)
                changes[key] = None
        left.append(replace(guidance, **changes))
    return tuple(left)


def _pair(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
