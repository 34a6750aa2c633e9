"""Published checkpoints, both ways: python -m regscale.export SOURCE --to DESTINATION.

A file (.pt, .safetensors) of REG, REPA or SiT becomes a run folder; a run folder becomes a file.
"""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from regscale import assemble
from regscale.checkpoint import newest
from regscale.config import load_layers, override_layers
from regscale.errors import RegscaleError
from regscale.log import run_command
from regscale.published import (
    Architecture,
    NamedState,
    Published,
    architecture,
    by_name,
    from_official,
    from_run,
    num_heads,
    read,
    run_values,
    save_run,
    shapes,
    write_checkpoint,
    write_weights,
)
from regscale.recipe import RunConfig

log = logging.getLogger(__name__)
FILES = (".pt", ".safetensors")
FROM_FILE = ("alignment_depth", "num_heads", "image_size", "no_optimizer", "overrides")
FROM_RUN = ("weights", "ema")


def main(arguments: list[str]) -> None:
    """A published checkpoint to a run folder, or a run folder to a published checkpoint."""
    options = _parser().parse_intermixed_args(arguments)
    source = options.source
    if not source.exists():
        raise RegscaleError(
            source,
            "there is no such file or folder",
            found="nothing",
            fix="Give a published .pt or .safetensors file, or the folder of a run.",
        )
    for key in FROM_FILE if source.is_dir() else FROM_RUN:
        if getattr(options, key):
            raise RegscaleError(
                key if key == "overrides" else f"--{key.replace('_', '-')}",
                f"is for a source that is a {'file' if source.is_dir() else 'run folder'}",
                found=source,
                fix="Leave it out.",
            )
    if source.is_dir():
        export_run(source, options.to, weights=options.weights, decay=options.ema)
    else:
        import_file(source, options.to, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m regscale.export", description=main.__doc__)
    add = parser.add_argument
    add("source", type=Path, help="a .pt or .safetensors file, or a run folder")
    add("--to", type=Path, required=True, help="a new run folder, or a new .pt or .safetensors")
    file = parser.add_argument_group("from a file", "what weights do not tell").add_argument
    file("--alignment-depth", type=int, help="of the projectors (the paper: 4 for B, 8 for L, XL)")
    file("--num-heads", type=int, help="for widths other than those of S, B, L and XL")
    file("--image-size", type=int, help="pixels of a side")
    file("--no-optimizer", action="store_true", help="to sample only: half the size")
    file("overrides", nargs="*", help="key.sub=value, as data.root=imagenet/train")
    run = parser.add_argument_group("from a run folder").add_argument
    run("--weights", choices=["ema", "model"], help="for .safetensors; without it ema")
    run("--ema", type=float, help="the decay of the averaged weights to write")
    return parser


def import_file(path: Path, to: Path, options: argparse.Namespace) -> None:
    """A run folder whose checkpoint holds the file's weights, averages and optimizer."""
    if to.suffix in FILES or (to.exists() and not (to.is_dir() and not any(to.iterdir()))):
        raise RegscaleError(
            f"--to {to}",
            "is the new folder of a run when the source is a file",
            found="the name of a file" if to.suffix in FILES else "something there",
            fix="Choose a folder that does not exist, as runs/reg-xl.",
        )
    content = read(path)
    for key in ("ema", "model"):
        state = getattr(content, key)
        model = architecture({n: tuple(x.shape) for n, x in state.items()}, f"{path}: {key}")
    optimizer = None if options.no_optimizer else _optimizer(content, model, path)
    if model.doubled:
        content = replace(
            content,
            model=from_official(content.model, model),
            ema=from_official(content.ema, model),
        )
        model = replace(model, doubled=False)
    group = optimizer and optimizer.group
    config = _config(content.args or {}, group, model, to, options)
    pieces = assemble.pieces(config)
    save_run(
        to,
        content,
        optimizer=optimizer,
        config=config,
        model=pieces.model,
        fingerprint=_fingerprint(pieces.source),
    )
    log.info("%s is in %s: %s", path, to, _described(model, config))
    log.info("draw pictures: python -m regscale.sample --checkpoint %s", to)


def _optimizer(content: Published, model: Architecture, path: Path) -> NamedState:
    if model.doubled:
        log.info("official SiT: its time is turned around; moments do not turn, they begin at zero")
    elif content.opt is not None:
        return by_name(content.opt, shapes(model), path)
    return NamedState({}, {}, None)


def _config(
    args: Mapping[str, Any],
    group: Mapping[str, Any] | None,
    model: Architecture,
    to: Path,
    options: argparse.Namespace,
) -> RunConfig:
    where = options.source
    values = run_values(
        model,
        args,
        group=group or {},
        num_heads=num_heads(model, options.num_heads, args, where),
        alignment_depth=options.alignment_depth,
        image_size=options.image_size,
        where=where,
    )
    values |= {"name": to.name, "runs": str(to.parent)}
    return load_layers(RunConfig, [(str(where), values), *override_layers(options.overrides)])


def _fingerprint(source: Any) -> str | None:
    try:
        return str(source.fingerprint)
    except RegscaleError as error:
        log.info("this run can be sampled but not trained further, its data is not here: %s", error)
        return None


def _described(model: Architecture, config: RunConfig) -> str:
    aligned = [f"{name} at block {align.depth}" for name, align in config.aligned.items()]
    depth, width, heads = config.model.shape
    return (
        f"depth {depth}, width {width}, {heads} heads, patch {model.patch_size}, "
        f"entangled with {', '.join(config.entangled) or 'nothing'}, "
        f"aligned with {', '.join(aligned) or 'nothing'}"
    )


def export_run(folder: Path, to: Path, *, weights: str | None, decay: float | None) -> None:
    """The newest checkpoint of a run as a file that the published code loads strictly."""
    if to.suffix not in FILES or to.exists():
        raise RegscaleError(
            f"--to {to}",
            "is a new file, .pt or .safetensors, when the source is a run folder",
            found="it exists" if to.exists() else f"suffix {to.suffix or 'none'}",
            fix="Choose another name, as reg-xl.pt.",
        )
    if weights and to.suffix == ".pt":
        raise RegscaleError(
            "--weights", "is for .safetensors", found=to, fix="A .pt holds both; leave it out."
        )
    reader = newest(folder / "checkpoints")
    if reader is None:
        raise RegscaleError(
            folder,
            "holds no checkpoint",
            found="no folder checkpoints/step-*",
            fix="Give the folder of a run, or a published file.",
        )
    if to.suffix == ".pt":
        write_checkpoint(to, from_run(reader, decay=decay))
    else:
        which = weights or "ema"
        write_weights(to, from_run(reader, decay=decay, only=which), which=which)
    log.info("step %s of %s is in %s", f"{reader.step:,}", folder, to)


if __name__ == "__main__":
    run_command(main)
