"""What a config says of its targets, for the backbone, the towers and the sampler."""

from functools import partial
from pathlib import Path

from regscale.encoding import Normalisation
from regscale.models import AlignPart, Backbone, TokenPart
from regscale.recipe import EntangleConfig, RunConfig
from regscale.representations import Target
from regscale.representations._stats import read_stats, stats_or_nan
from regscale.sampling import TargetGuidance
from regscale.schedule import Schedule


def schedule_of(config: RunConfig) -> Schedule:
    """Of the image and the entangled targets; sampling's steps are shifted as `sampling` says."""
    targets = tuple(each.schedule for each in config.entangled.values())
    return Schedule(targets, grid_shift=config.sampling.shift)


def target_guidance(config: RunConfig) -> tuple[TargetGuidance, ...]:
    """What each entangled target says for itself."""
    return tuple(
        TargetGuidance(each.guidance_scale, each.guidance_interval)
        for each in config.entangled.values()
    )


def normalisations(config: RunConfig, model: Backbone) -> tuple[Normalisation, ...]:
    """Of the entangled targets; statistics are those that the model holds when they are used."""
    return tuple(
        Normalisation(each.normalisation, partial(model.stats_of, place))
        for place, each in enumerate(config.entangled.values())
    )


def token_parts(config: RunConfig, targets: dict[str, Target]) -> tuple[TokenPart, ...]:
    def part(name: str, entangle: EntangleConfig) -> TokenPart:
        width, file, where = targets[name].width, entangle.stats, _stats_key(config, name)
        return TokenPart(
            entangle.slot,
            targets[name].num_tokens,
            width,
            has_own_time=entangle.schedule.kind != "same",
            stats=None if file is None else partial(stats_or_nan, file, width, where=where),
        )

    return tuple(part(name, entangle) for name, entangle in config.entangled.items())


def check_stats(config: RunConfig, targets: dict[str, Target], folder: Path) -> None:
    """A run without a checkpoint that holds them needs the files of its tokens' statistics."""
    if not any((folder / "checkpoints").glob("step-*")):
        for name, entangle in config.entangled.items():
            if entangle.stats is not None:
                where = _stats_key(config, name)
                read_stats(entangle.stats, targets[name].width, where=where)


def _stats_key(config: RunConfig, name: str) -> str:
    return f"{config.name}: entangle.{name}.stats"


def align_parts(
    config: RunConfig, targets: dict[str, Target], image_size: tuple[int, int]
) -> tuple[AlignPart, ...]:
    entangled = list(config.entangled)
    return tuple(
        AlignPart(
            depth=align.depth,
            width=targets[name].width,
            hidden=align.projector,
            entangled=entangled.index(name) if name in entangled else None,
            has_patches=targets[name].grid(*image_size) is not None,
        )
        for name, align in config.aligned.items()
    )
