"""What hidden states of a run know: CKNNA and a linear probe by block and time, against a target.

Also how the tokens that a run generates agree with what the target sees in the generated images.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regscale import assemble
from regscale import path as diffusion_path
from regscale.assemble import Loaded
from regscale.config import kind_of, load_layers, override_layers, plugin, to_values
from regscale.data import NoiseShapes, Source
from regscale.entangling import schedule_of
from regscale.errors import RegscaleError
from regscale.evaluation.hidden import (
    Held,
    Row,
    Samples,
    Subject,
    agreement,
    nearest_class,
    report,
    states_of,
    table,
)
from regscale.files import replacing
from regscale.recipe import RunConfig
from regscale.sampling.many import UNIT
from regscale.sampling.pictures import open_folder

log = logging.getLogger(__name__)

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run folder")
    add(
        "settings",
        nargs="*",
        help="how the data to test on differ from the run's: key=value, as split=judge; without "
        "them the probe is tested on the samples of the run's data that follow the fitted ones",
    )
    add("--target", help="the name of one of the run's targets; without it the first")
    add("--times", type=float, nargs="+", default=TIMES)
    add("--num-samples", type=int, default=512, help="to fit the probe to, and to test it on")
    add("--num-images", type=int, default=64, help="generated, for token-image agreement; 0: none")
    add("--ema", type=float)
    add("--device", default="auto")
    add("--out", type=Path, help="a folder; without it evaluations/analysis of the run")


def run(options: argparse.Namespace) -> None:
    """analysis.json and a table: blocks down, times across."""
    loaded = assemble.trained(options.run, device=options.device, decay=options.ema)
    name, subject = _subject(loaded, options.target)
    fitted, tested = _samples(loaded.config, options.settings, options.num_samples)
    out = options.out or loaded.run / "evaluations" / "analysis"
    open_folder(out)
    rows, seen = _rows(subject, fitted, tested, options.times)
    found = _agreement(loaded, subject, name, fitted.source, seen, options.num_images)
    values = {
        "target": subject.target.identity,
        "fitted": str(fitted),
        "tested": str(tested),
        "rows": [row._asdict() for row in rows],
    }
    with replacing(out / "analysis.json") as file:
        file.write((json.dumps(values | found, indent=1) + "\n").encode())
    told = "\n".join(f"{key:32}{value:.4f}" for key, value in found.items())
    about = f"target {name}: {tested}; the probe is fitted to {fitted}"
    log.info("CKNNA / linear probe, %s\n%s\n%s", about, report(rows), told)


def _subject(loaded: Loaded, name: str | None) -> tuple[str, Subject]:
    """The run's model, and a target that its config names; the run need not use it."""
    sampler, named = loaded.sampler, loaded.config.targets
    towers = loaded.towers.to(sampler.device)
    name = name or next(iter([*towers.targets, *named]), "")
    if name not in named:
        raise RegscaleError(
            "--target",
            "names a target of the run",
            found=f"'{name}'; there are {', '.join(named) or 'none'}",
            fix="Choose one of these.",
        )
    target = towers.targets.get(name) or _built("regscale.representations", named[name])
    return name, Subject(
        device=sampler.device,
        model=sampler.model,
        blocks=sampler.model.blocks,
        towers=towers,
        path=diffusion_path.build(loaded.config.path),
        shapes=NoiseShapes(latents=sampler.latent_shape, tokens=sampler.token_shapes),
        schedule=schedule_of(loaded.config),
        target=target.to(sampler.device),
    )


def _built(package: str, config: Any) -> Any:
    return plugin(package, kind_of(config)).build(config)


def _samples(config: RunConfig, settings: list[str], number: int) -> tuple[Samples, Samples]:
    """To fit the probe to, and to test it on: of the run's data, and of what they are with the
    settings; where these are the same data, the samples that come next."""
    if number < 1:
        raise RegscaleError("--num-samples", "is positive", found=number, fix="Try 512.")
    name, layers = "the run's data", override_layers([f"data.{each}" for each in settings])
    changed = load_layers(RunConfig, [(name, to_values(config)), *layers])
    own, other = (_built("regscale.data", each.data) for each in (config, changed))
    told = f"{name} with {' '.join(settings)}" if settings else name
    first = number if other.fingerprint == own.fingerprint else 0
    return _taken(own, name, 0, number), _taken(other, told, first, number)


def _taken(source: Source, name: str, first: int, number: int) -> Samples:
    end = first + number
    if end > source.num_samples:
        raise RegscaleError(
            f"--num-samples {number}",
            "takes so many to fit the probe to, and as many others to test it on",
            found=f"{source.num_samples:,} samples in {name}, where {end:,} are needed",
            fix="Give fewer, or the settings of other data to test on, as split=judge.",
        )
    return Samples(source, range(first, end), name)


def _rows(
    subject: Subject, fitted: Samples, tested: Samples, times: Sequence[float]
) -> tuple[list[Row], Held]:
    rows: list[Row] = []
    seen: Held | None = None
    for time in times:
        seen = states_of(subject, fitted, time=time)
        rows += table(seen, states_of(subject, tested, time=time), time=time)
    assert seen is not None, "argparse gives one time or more"
    return rows, seen


@torch.no_grad()
def _agreement(
    loaded: Loaded, subject: Subject, name: str, source: Source, seen: Held, number: int
) -> dict[str, float]:
    """Of generated tokens with their own images; nothing where the target is not entangled."""
    entangled, sampler = list(loaded.config.entangled), loaded.sampler
    if name not in entangled or not number:
        return {}
    place, classes = entangled.index(name), sampler.num_classes
    asked = _asked(source, classes, number)
    tokens, image_tokens = [], []
    for start in range(0, number, UNIT):
        part = asked[start : start + UNIT]
        condition, seeds = sampler.conditioner.parse(part), range(start, start + len(part))
        state = sampler.state(condition, seeds, loaded.config.sampling.guidance)
        made = subject.towers.normalisations[place].restore(state.tokens[place].float())
        pictures = sampler.autoencoder.decode(state.latents.float())
        tokens.append(made.cpu())
        image_tokens.append(subject.target(pictures).tokens.cpu())
    made = torch.cat(tokens)
    own, other = agreement(made, torch.cat(image_tokens))
    found = {"token-image agreement": own, "with another image": other}
    if seen.labels is not None and classes is not None:
        nearest = nearest_class(made, seen.features, seen.labels)
        right = nearest == torch.tensor([int(text) for text in asked])
        found["nearest class is the asked one"] = float(right.double().mean())
    return found


def _asked(source: Source, classes: int | None, number: int) -> list[str]:
    """All classes in turn, or the captions of the first samples."""
    if classes is not None:
        return [str(i % classes) for i in range(number)]
    places = range(min(number, source.num_samples))
    captions = source.read(places, places).require("captions", by="a text condition")
    return [captions[i % len(captions)] for i in range(number)]
