"""A frozen RunConfig to live objects. The one place that knows every object."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regscale import path as diffusion_path
from regscale.autoencoders import Autoencoder
from regscale.checkpoint import Reader, find
from regscale.checkpoint.read import ALONE
from regscale.cluster import Cluster, connect, join
from regscale.conditioning import Conditioner
from regscale.config import (
    Invalid,
    kind_of,
    load_layers,
    load_values,
    override_layers,
    plugin,
    to_values,
    to_yaml,
)
from regscale.data import Bucketed, NoiseShapes, Size, Source, spelled
from regscale.encoding import Towers
from regscale.entangling import (
    align_parts,
    check_stats,
    normalisations,
    schedule_of,
    target_guidance,
    token_parts,
)
from regscale.errors import RegscaleError
from regscale.initialise import starting_from
from regscale.layers.initial import materialise
from regscale.measuring import during
from regscale.models import Backbone, Parts
from regscale.parallel import DTYPES, Engine, set_precision
from regscale.preview import preview
from regscale.recipe import RunConfig
from regscale.representations import Target
from regscale.sampling import Sampler
from regscale.stored import check_stored
from regscale.training import Ema, Job
from regscale.training.agreement import digest, same_everywhere, versions
from regscale.training.throughput import peak_flops, training_flops

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The frozen towers and a backbone on the meta device: nothing is loaded or allocated."""

    config: RunConfig
    source: Source
    autoencoder: Autoencoder
    conditioner: Conditioner
    targets: dict[str, Target]
    latent_shape: tuple[int, int, int]
    bucket_shapes: dict[Size, tuple[int, int, int]]  # latents of batches that tell their size
    model: Any

    @property
    def token_shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple(
            (self.targets[name].num_tokens, self.targets[name].width)
            for name in self.config.entangled
        )

    @property
    def noise_shapes(self) -> NoiseShapes:
        own = schedule_of(self.config).own_times
        return NoiseShapes(
            latents=self.latent_shape,
            tokens=self.token_shapes,
            own_times=own,
            buckets=self.bucket_shapes,
        )

    def flops(self) -> float:
        """Of the backbone's training on one image."""
        blank = self.conditioner.blank(1)
        return training_flops(self.model, self.latent_shape, self.token_shapes, blank)


def pieces(config: RunConfig) -> Pieces:
    """Everything of a run that needs no device."""
    with _named(config):
        source = _build("regscale.data", config.data)
        autoencoder = _build("regscale.autoencoders", config.autoencoder)
        conditioner = _build("regscale.conditioning", config.conditioning)
        used = [name for name in config.targets if name in {**config.entangled, **config.aligned}]
        targets = {n: _build("regscale.representations", config.targets[n]) for n in used}
        latent_shape = autoencoder.latent_shape(*source.image_size)
        parts = Parts(
            latent_shape=latent_shape,
            tokens=token_parts(config, targets),
            aligned=align_parts(config, targets, source.image_size),
            embedder_slot=conditioner.slot,
            embedder=conditioner.embedder,
        )
        with torch.device("meta"):
            model = plugin("regscale.models", kind_of(config.model)).build(config.model, parts)
        patch = latent_shape[1] // model.grid[0]
        bucket_shapes = _bucket_shapes(source, autoencoder, model, patch)
    return Pieces(
        config=config,
        source=source,
        autoencoder=autoencoder,
        conditioner=conditioner,
        targets=targets,
        latent_shape=latent_shape,
        bucket_shapes=bucket_shapes,
        model=model,
    )


def _bucket_shapes(
    source: Source, autoencoder: Autoencoder, model: Backbone, patch: int
) -> dict[Size, tuple[int, int, int]]:
    """Latents by the size of their pictures, where batches differ in it: whole patches, of a model
    that knows places on any grid. `patch` is the side of one."""
    if not isinstance(source, Bucketed):
        return {}
    shapes = {
        b.image_size: autoencoder.latent_shape(*b.image_size) for b in source.buckets.values()
    }
    if len(shapes) > 1 and not model.any_grid:
        raise Invalid(
            "data.sources",
            "have pictures of one size for a model with a table of places",
            found=", ".join(map(spelled, shapes)),
            fix="Set model.rope=true, or take one of the sources as the data.",
        )
    for name, bucket in source.buckets.items():
        _, height, width = shapes[bucket.image_size]
        if height % patch or width % patch:
            raise Invalid(
                f"data.sources.{name}",
                f"has latents of whole patches, {patch} x {patch}",
                found=f"{height} x {width}",
                fix="Choose another size, or another model.patch_size.",
            )
    return shapes


def job(config: RunConfig) -> Job:
    """A run that is ready to train."""
    cluster = _connected(config)
    parts, folder = pieces(config), Path(config.runs) / config.name
    same_everywhere(cluster, {"data": parts.source.fingerprint})
    check_stored(config, parts.source, parts.targets)
    check_stats(config, parts.targets, folder)
    peak = peak_flops(cluster.device, tflops=config.training.peak_tflops)
    with _named(config), starting_from(config, parts.model, folder, cluster) as origin:
        engine: Engine = plugin("regscale.parallel", kind_of(config.engine)).build(
            config.engine,
            parts.model,
            optimizer=config.optimizer,
            seed=config.seed,
            cluster=cluster,
        )
    ema = Ema(engine.shards(), config.ema.decays)
    shapes = parts.noise_shapes
    towers, sampler = _towers(parts).to(cluster.device), _sampler(parts, cluster.device)

    def averaged() -> AbstractContextManager[None]:
        return engine.weights(ema.weights(config.ema.decays[0]))

    return Job(
        name=config.name,
        folder=folder,
        seed=config.seed,
        config=config.training,
        values=to_values(config),
        cluster=cluster,
        source=parts.source,
        shapes=shapes,
        towers=towers,
        engine=engine,
        ema=ema,
        path=diffusion_path.build(config.path),
        times=config.times,
        schedule=schedule_of(config),
        weights=config.loss_weights,
        dropout=config.conditioning.dropout,
        stop_steps=tuple(a.stop_step for a in config.aligned.values()),
        preview=preview(config, sampler, averaged, cluster),
        evaluation=during(config, sampler, towers, shapes, cluster=cluster, averaged=averaged),
        flops=peak and parts.flops(),
        peak_flops=peak,
        origin=origin,
        attention=parts.model.attention_choice(
            cluster.device, DTYPES[config.engine.precision]
        )._asdict(),
        complete=lambda saved: to_values(load_values(RunConfig, saved, "the checkpoint's config")),
    )


def _connected(config: RunConfig) -> Cluster:
    """This process, with a line to the others, which were started as it was."""
    cluster = connect(join(config.device))
    same_everywhere(cluster, {"config": digest(to_yaml(to_values(config))), **versions()})
    if config.training.batch_size % cluster.world_size:
        raise RegscaleError(
            f"{config.name}: training.batch_size",
            f"divides by the number of processes, {cluster.world_size}",
            found=config.training.batch_size,
            fix="Choose a multiple.",
        )
    return cluster


@dataclass(frozen=True, slots=True)
class Loaded:
    """A trained run, ready to sample."""

    config: RunConfig
    sampler: Sampler
    reader: Reader
    decay: float
    towers: Towers
    image_size: tuple[int, int]  # of the pictures that it draws

    @property
    def run(self) -> Path:
        """The folder of the run, also where one of its checkpoints was asked for; of a checkpoint
        that lies elsewhere, its own."""
        folder = Path(os.path.abspath(self.reader.folder))
        return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def trained(
    folder: Path,
    *,
    device: str = "auto",
    decay: float | None = None,
    sampling: Sequence[str] = (),
    cluster: Cluster = ALONE,
) -> Loaded:
    """The newest intact checkpoint of a run folder, or the one that `folder` is, with averaged
    weights in the model. Processes of a cluster agree on it.

    `sampling` changes settings of the run's section of that name: `solver.num_steps=50`.
    """
    reader = find(folder, cluster)
    if reader is None:
        raise RegscaleError(
            folder,
            "holds no checkpoint",
            found="no folder checkpoints/step-*" if folder.is_dir() else "no such run folder",
            fix="Give a run folder such as runs/digits; a published .pt becomes one by "
            "python -m regscale.export FILE --to runs/NAME.",
        )
    changes = override_layers([f"sampling.{each}" for each in sampling])
    config = load_layers(RunConfig, [(str(reader.folder), reader.config), *changes])
    decays = config.ema.decays
    if decay is not None and decay not in decays:
        raise RegscaleError(
            folder,
            f"has no average of decay {decay}",
            found=list(decays),
            fix="Choose one of these.",
        )
    parts, own = pieces(config), join(device).device
    materialise(parts.model, seed=config.seed, device=own)
    decay = decays[0] if decay is None else decay
    _load(parts.model, reader, f"ema/{decay}")
    _ready_to_sample(parts.model, config)
    sampler = _sampler(parts, own)
    return Loaded(config, sampler, reader, decay, _towers(parts), parts.source.image_size)


def _ready_to_sample(model: Any, config: RunConfig) -> None:
    """Nothing is trained or aligned, and products have the precision of sampling."""
    model.eval().requires_grad_(requires_grad=False)
    set_precision(model, config.sampling.precision, tf32=config.sampling.tf32)
    for index in range(len(config.aligned)):
        model.stop_aligning(index)


@torch.no_grad()
def _load(model: torch.nn.Module, reader: Reader, prefix: str) -> None:
    held = set(reader.names())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        stored = f"{prefix}/{name}"
        found = reader.shape(stored) if stored in held else "no such tensor"
        if found != tuple(tensor.shape):
            raise RegscaleError(
                f"{reader.folder}: {stored}",
                f"does not fit the model, which has shape {tuple(tensor.shape)}",
                found=found,
                fix="The folder's config and weights belong to different runs; restore one.",
            )
        tensor.copy_(reader.tensor(stored))


def _build(package: str, config: Any) -> Any:
    return plugin(package, kind_of(config)).build(config)


def _towers(parts: Pieces) -> Towers:
    return Towers(
        parts.autoencoder,
        parts.targets,
        parts.conditioner,
        tuple(parts.config.entangled),
        tuple(parts.config.aligned),
        parts.model.grid,
        parts.source.image_size,
        normalisations(parts.config, parts.model),
    )


def _sampler(parts: Pieces, device: torch.device) -> Sampler:
    config = parts.config
    solver = plugin("regscale.sampling.solvers", kind_of(config.sampling.solver)).build(
        config.sampling.solver, diffusion_path.build(config.path)
    )
    return Sampler(
        model=parts.model,
        conditioner=parts.conditioner.to(device),
        autoencoder=parts.autoencoder.to(device),
        solver=solver,
        latent_shape=parts.latent_shape,
        token_shapes=parts.token_shapes,
        device=device,
        schedule=schedule_of(config),
        target_guidance=target_guidance(config),
    )


@contextmanager
def _named(config: RunConfig) -> Iterator[None]:
    """Adds the run's name to what a plug-in finds wrong when it is built."""
    try:
        yield
    except Invalid as error:
        raise RegscaleError(
            f"{config.name}: {error.key}", error.what, found=error.found, fix=error.fix
        ) from error
