"""Where first weights come from: a run folder, one checkpoint of it, or a published file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from regscale.checkpoint import Reader, find
from regscale.checkpoint.format import MANIFEST
from regscale.cluster import Cluster
from regscale.config import load_values
from regscale.errors import RegscaleError
from regscale.published import architecture, from_official, read
from regscale.recipe import InitConfig, RunConfig

Shape = tuple[int, ...]
FIX = "Give a run folder, one of its checkpoints, or a published .pt or .safetensors."


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights by name, each read when it is asked for."""

    where: str
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]  # in its shape, on the CPU
    origin: dict[str, Any]  # what a checkpoint says of them: JSON values
    num_heads: int | None  # None where a file does not tell
    clean_above: float | None  # of the model; None: its image head gives velocities, as published


def open_weights(config: InitConfig, cluster: Cluster) -> Weights:
    """The weights that a config names. Collective."""
    assert config.path is not None, "nothing is opened where nothing is named"
    path = Path(config.path).expanduser()
    is_folder = cluster.from_first(lambda: _is_folder(path))
    return _of_run(path, config, cluster) if is_folder else _of_file(path, config, cluster)


def _is_folder(path: Path) -> bool:
    if not path.exists():
        near = sorted(str(each) for each in path.parent.glob("*"))[:6]
        raise RegscaleError(
            f"init_from.path {path}",
            "there is no such file or folder",
            found=", ".join(near) or f"nothing in {path.parent}",
            fix=FIX,
        )
    return path.is_dir()


def _of_run(path: Path, config: InitConfig, cluster: Cluster) -> Weights:
    reader = find(path, cluster)
    if reader is None:
        raise RegscaleError(
            f"init_from.path {path}",
            "holds no checkpoint",
            found="neither manifest.json nor checkpoints/step-*",
            fix=FIX,
        )
    run = load_values(RunConfig, reader.config, str(reader.folder))
    prefix = "model" if config.weights == "model" else f"ema/{_decay(reader, run, config)}"
    names = [name for name in reader.names() if name.startswith(f"{prefix}/")]
    return Weights(
        where=f"{reader.folder}, {prefix}",
        shapes={name.removeprefix(f"{prefix}/"): reader.shape(name) for name in names},
        read=lambda name: reader.tensor(f"{prefix}/{name}"),
        origin={
            "path": str(reader.folder.resolve()),
            "weights": prefix,
            "step": reader.step,
            "digest": cluster.from_first(lambda: _digest(reader.folder / MANIFEST)),
        },
        num_heads=run.model.shape[2],
        clean_above=run.model.clean_above,
    )


def _decay(reader: Reader, run: RunConfig, config: InitConfig) -> float:
    decays = run.ema.decays
    if config.decay not in (None, *decays):
        raise RegscaleError(
            f"init_from.decay {config.decay}",
            f"is that of an average in {reader.folder}",
            found=", ".join(map(str, decays)),
            fix="Choose one of these, or leave it out for the first.",
        )
    return decays[0] if config.decay is None else config.decay


def _of_file(path: Path, config: InitConfig, cluster: Cluster) -> Weights:
    content = cluster.together(partial(read, path))
    state = content.model if config.weights == "model" else content.ema
    model = architecture({name: tuple(x.shape) for name, x in state.items()}, path)
    if model.doubled:
        state = from_official(state, model)
    return Weights(
        where=f"{path}, {config.weights}",
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        read=lambda name: state[name],
        origin={
            "path": str(path.resolve()),
            "weights": config.weights,
            "step": content.steps,
            "digest": cluster.from_first(lambda: _digest(path)),
        },
        num_heads=None,
        clean_above=None,
    )


def _digest(path: Path) -> str:
    """Of a file; that of a manifest stands for all files of its checkpoint."""
    made = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            made.update(block)
    return f"xxh3 {made.hexdigest()}"
