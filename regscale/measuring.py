"""What has to be known of pictures that a run draws, and the evaluation on its way."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from regscale import __version__
from regscale import path as diffusion_path
from regscale.checkpoint import Reader
from regscale.cluster import Cluster
from regscale.config import kind_of, plugin, to_values
from regscale.data import Bucketed, NoiseShapes
from regscale.encoding import Towers
from regscale.errors import RegscaleError
from regscale.evaluation._references import file_digest
from regscale.evaluation.during import During
from regscale.evaluation.provenance import Making
from regscale.evaluation.validation import Validation
from regscale.parallel import DTYPES
from regscale.recipe import RunConfig
from regscale.sampling import GuidanceConfig, Sampler
from regscale.sampling.many import UNIT
from regscale.schedule import Schedule

_TOLD = ("solver", "guidance", "precision", "tf32")  # by fields of their own


def making(
    config: RunConfig,
    sampler: Sampler,
    guidance: GuidanceConfig,
    *,
    decay: float,
    unit: int = UNIT,
) -> Making:
    """How a run draws; the suite and the checkpoint add what they know."""
    sampling = config.sampling
    solver = to_values(sampling.solver)
    steps = solver.pop("num_steps", None)
    diffusion = solver.pop("diffusion", "none")
    others = {k: v for k, v in to_values(sampling).items() if k not in _TOLD} | {"solver": solver}
    tokens = zip(config.entangled.items(), sampler.target_guidance, strict=True)
    for (name, entangled), own in tokens:
        said = {f"guidance_{key}": value for key, value in asdict(own).items()}
        others[name] = {"schedule": to_values(entangled.schedule), **said}
    token_scale = guidance.scale if guidance.token_scale is None else guidance.token_scale
    tf32 = " with tf32" if sampling.tf32 and sampler.device.type == "cuda" else ""
    attention = sampler.model.attention_choice(sampler.device, DTYPES[sampling.precision])
    return Making(
        sampler=kind_of(sampling.solver),
        steps="adaptive" if steps is None else str(steps),
        diffusion=diffusion,
        sampling=json.dumps(others, sort_keys=True, default=str),
        guidance_scale=guidance.scale,
        guidance_interval=str(list(guidance.interval)),
        token_guidance_scale=token_scale,
        token_guidance_interval=str(list(guidance.token_interval or guidance.interval)),
        unit=unit,
        precision=f"{sampling.precision}{tf32}",
        attention=f"{attention.backend} ({attention.kernel})",
        ema=decay,
        regscale=__version__,
    )


def checkpoint_of(run: Path, reader: Reader) -> str:
    """Run, step and the hash of the manifest, which holds the hashes of all weights."""
    return f"{run.name} step {reader.step} {file_digest(reader.folder / 'manifest.json')}"


def during(
    config: RunConfig,
    sampler: Sampler,
    towers: Towers,
    shapes: NoiseShapes,
    *,
    cluster: Cluster,
    averaged: Callable[[], AbstractContextManager[None]],
) -> During | None:
    """The evaluation that the run asks for on its way; None where it asks for none.

    Pictures are drawn in the precision of the engine.
    """
    wish = config.evaluation
    if not wish.evaluate_every:
        return None
    engine, guidance = config.engine, config.sampling.guidance
    own = replace(config.sampling, precision=engine.precision, tf32=engine.tf32)
    drawn = replace(config, sampling=own)
    return During(
        every=wish.evaluate_every,
        folder=Path(config.runs) / config.name,
        cluster=cluster,
        averaged=averaged,
        sampler=sampler,
        guidance=guidance,
        making=making(drawn, sampler, guidance, decay=config.ema.decays[0]),
        suites={name: _suite(each) for name, each in wish.suites.items()},
        validations={
            name: _validation(
                name,
                each,
                config=config,
                towers=towers,
                shapes=shapes,
                schedule=sampler.schedule,
                cluster=cluster,
            )
            for name, each in wish.validation.items()
        },
        best=wish.best,
        keep_images=wish.keep_images,
    )


def _suite(config: Any) -> Any:
    return plugin("regscale.evaluation.suites", kind_of(config)).build(config)


def _validation(
    name: str,
    data: Any,
    *,
    config: RunConfig,
    towers: Towers,
    shapes: NoiseShapes,
    schedule: Schedule | None,
    cluster: Cluster,
) -> Validation:
    assert schedule is not None, "the sampler of a run has the schedule of its training"
    source = plugin("regscale.data", kind_of(data)).build(data)
    if isinstance(source, Bucketed):
        raise RegscaleError(
            f"{config.name}: evaluation.validation.{name}",
            "has pictures of one size",
            found="kind buckets",
            fix="Name one of its sources.",
        )
    if source.image_size != towers.image_size:
        raise RegscaleError(
            f"{config.name}: evaluation.validation.{name}",
            "has pictures of another size than the run's data",
            found=f"{source.image_size}, the run's are {towers.image_size}",
            fix="Give both the same image_size.",
        )
    return Validation(
        source=source,
        shapes=shapes,
        towers=towers,
        path=diffusion_path.build(config.path),
        schedule=schedule,
        cluster=cluster,
        num_samples=config.evaluation.num_validation,
    )
