"""What hidden states of a run know: CKNNA and a linear probe by block and time, against a target.

Also how the tokens that a run generates agree with what the target sees in the generated images.
"""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from regscale import assemble
from regscale import path as diffusion_path
from regscale.assemble import Loaded
from regscale.config import kind_of, load_layers, plugin
from regscale.config.layers import override_layers
from regscale.data import NoiseShapes
from regscale.errors import RegscaleError
from regscale.evaluation.hidden import (
    Held,
    Row,
    Subject,
    agreement,
    mean_feature,
    nearest_class,
    report,
    states_of,
    table,
)
from regscale.files import replacing
from regscale.sampling.many import UNIT, Wanted
from regscale.sampling.pictures import open_folder

log = logging.getLogger(__name__)

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run folder")
    add("settings", nargs="*", help="of the data of unseen samples: key=value, as split=judge")
    add("--target", help="the name of one of the run's targets; without it the first")
    add("--times", type=float, nargs="+", default=TIMES)
    add("--num-samples", type=int, default=512, help="to learn the probe from, and to test it on")
    add("--num-images", type=int, default=64, help="generated, for token-image agreement; 0: none")
    add("--ema", type=float)
    add("--out", type=Path, help="a folder; without it evaluations/analysis of the run")


def run(options: argparse.Namespace) -> None:
    """analysis.json and a table: blocks down, times across."""
    loaded = assemble.trained(options.run, device="cpu", decay=options.ema)
    parts = assemble.pieces(loaded.config)
    name = options.target or next(iter(parts.targets), "")
    if name not in parts.targets:
        raise RegscaleError(
            "--target",
            "names a target of the run",
            found=f"'{name}'; there are {', '.join(parts.targets) or 'none'}",
            fix="Choose one of these.",
        )
    out = options.out or options.run / "evaluations" / "analysis"
    open_folder(out)
    rows, seen = _rows(loaded, parts, name, options)
    found = _agreement(loaded, parts, name, seen, options.num_images)
    values = {"target": parts.targets[name].identity, "rows": [row._asdict() for row in rows]}
    with replacing(out / "analysis.json") as file:
        file.write((json.dumps(values | found, indent=1) + "\n").encode())
    told = "\n".join(f"{key:32}{value:.4f}" for key, value in found.items())
    log.info("CKNNA / linear probe, target %s\n%s\n%s", name, report(rows), told)


def _rows(
    loaded: Loaded, parts: assemble.Pieces, name: str, options: argparse.Namespace
) -> tuple[list[Row], Held]:
    module = plugin("regscale.data", kind_of(loaded.config.data))
    layers = override_layers(options.settings)
    unseen = module.build(load_layers(module.Config, layers)) if layers else parts.source
    subject = Subject(
        model=loaded.sampler.model,
        blocks=loaded.sampler.model.blocks,
        towers=assemble._towers(replace(parts, model=loaded.sampler.model)),
        path=diffusion_path.build(loaded.config.path),
        shapes=NoiseShapes(latents=parts.latent_shape, tokens=parts.token_shapes),
        target=parts.targets[name],
    )
    rows: list[Row] = []
    seen: Held | None = None
    for time in options.times:
        number = options.num_samples
        seen = states_of(subject, parts.source, time=time, num_samples=number)
        rows += table(seen, states_of(subject, unseen, time=time, num_samples=number), time=time)
    assert seen is not None, "argparse gives one time or more"
    return rows, seen


@torch.no_grad()
def _agreement(
    loaded: Loaded, parts: assemble.Pieces, name: str, seen: Held, number: int
) -> dict[str, float]:
    """Of generated tokens with their own images; nothing where the target is not entangled."""
    entangled = list(loaded.config.entangled)
    classes = loaded.sampler.conditioner.num_classes
    if name not in entangled or not number or classes is None:
        return {}
    wanted = [Wanted(str(i % classes), i) for i in range(number)]
    tokens, images = [], []
    for start in range(0, number, UNIT):
        part = wanted[start : start + UNIT]
        condition = loaded.sampler.conditioner.parse([each.text for each in part])
        seeds = [each.seed for each in part]
        state = loaded.sampler.state(condition, seeds, loaded.config.sampling.guidance)
        tokens.append(state.tokens[entangled.index(name)][:, 0].float())
        images.append(loaded.sampler.autoencoder.decode(state.latents.float()))
    made, pictures = torch.cat(tokens), torch.cat(images)
    own, other = agreement(made, mean_feature(parts.targets[name](pictures)))
    found = {"token-image agreement": own, "with another image": other}
    if seen.labels is not None:
        asked = torch.tensor([int(each.text) for each in wanted])
        nearest = nearest_class(made, seen.features, seen.labels)
        found["nearest class is the asked one"] = float((nearest == asked).double().mean())
    return found
