"""Captions to pictures: COCO-30k, MJHQ, or any file of captions; FID and CLIPScore.

`captions` is a JSON file: COCO's list of {image_id, id, caption}, which `ids` (one caption id a
line) chooses from and orders; MJHQ's meta_data.json, {name: {prompt, category}}; or lines of JSON
with `prompt`. The hashes of both files stand in the provenance: sets of 30,000 captions differ.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regscale.config import Invalid, slots
from regscale.errors import RegscaleError
from regscale.evaluation._references import file_digest
from regscale.evaluation.collecting import Place, features
from regscale.evaluation.judging import figures
from regscale.evaluation.metrics import Collected, Figure, clip_score_figure
from regscale.evaluation.pictures import Pictures, of_path
from regscale.evaluation.real import held_out_of, references_of
from regscale.evaluation.suites import Outcome
from regscale.evaluation.suites._classes import seeds_of
from regscale.evaluation.suites.imagenet256 import PACKAGE, built
from regscale.sampling.many import Wanted
from regscale.sampling.prompts import read_prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`references` and `held_out` by extractor, as of imagenet256; CLIPScore needs none of `clip`.

    `captioned` are real pictures, one of each caption in their order: CLIPScore's noise floor.
    """

    captions: str = ""
    ids: str | None = None  # of COCO: the file of caption ids
    num_samples: int | None = None  # the first so many; null: all
    seed: int = 0
    extractors: dict[str, Any] = slots(PACKAGE)  # empty: inception
    references: dict[str, str] = field(default_factory=dict)
    held_out: dict[str, str] = field(default_factory=dict)
    captioned: str | None = None  # a folder, an .npz or shards

    def __post_init__(self) -> None:
        if not self.captions:
            raise Invalid(
                "captions", "names a file", found="none", fix="Give captions=captions.json."
            )


class TextToImage:
    """One picture of each caption."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.captions = captions_of(Path(config.captions), config.ids)[: config.num_samples]
        files = [Path(path) for path in (config.captions, config.ids) if path]
        hashes = [f"{path.name} {file_digest(path)}" for path in files]
        self.labels = f"captions {', '.join(hashes)}"
        self.seeds = seeds_of(len(self.captions), config.seed)
        self.extractors, self.references = built(config.extractors), references_of(config)

    def wanted(self, num_classes: int | None) -> list[Wanted]:  # noqa: ARG002
        return [Wanted(text, self.config.seed + i) for i, text in enumerate(self.captions)]

    def measure(self, pictures: Pictures, place: Place) -> Outcome:
        self._check(pictures)
        extractors, against, size = self.extractors, self.references, pictures.shape[1]
        beside = held_out_of(self.config, size=size, cluster=place.cluster)
        alone: dict[str, Any] = {n: e for n, e in extractors.items() if hasattr(e, "texts")}
        compared = {n: e for n, e in extractors.items() if n not in alone or n in against}
        found, kept = figures(compared, against, pictures, place, held_out=beside)
        for name, extractor in alone.items():
            made = kept[name].made if name in kept else features(extractor, pictures, place)
            found.append(self._clip_score(made, extractor, size, place))
        return Outcome(figures=found)

    def _check(self, pictures: Pictures) -> None:
        if len(pictures) != len(self.captions):
            raise RegscaleError(
                f"t2i: {pictures.name}",
                "holds a picture of each caption, in their order",
                found=f"{len(pictures):,} pictures of {len(self.captions):,} captions",
                fix="Give all of them; num_samples=N takes the first N captions.",
            )

    def _clip_score(self, made: Collected, extractor: Any, size: int, place: Place) -> Figure:
        real = None if self.config.captioned is None else self._real(self.config.captioned, size)
        return clip_score_figure(
            made,
            self._texts(extractor),
            model=extractor.name,
            real=None if real is None else features(extractor, real, place),
        )

    def _real(self, path: str, size: int) -> Pictures:
        pictures = of_path(Path(path), size=size)
        if len(pictures) < len(self.captions):
            raise RegscaleError(
                f"captioned: {path}",
                "holds a picture of each caption, in their order",
                found=f"{len(pictures):,} pictures of {len(self.captions):,} captions",
                fix="Give all of them, named so that they sort as the captions do.",
            )
        return pictures.first(len(self.captions))

    def _texts(self, extractor: Any) -> Tensor:
        parts = [self.captions[i : i + 256] for i in range(0, len(self.captions), 256)]
        return torch.cat([extractor.texts(part).cpu() for part in parts])


def captions_of(path: Path, ids: str | None) -> list[str]:
    """In the order of their pictures."""
    if path.suffix == ".jsonl":
        return [each.text for each in read_prompts(path)]
    try:
        values = json.loads(path.read_text())
        if isinstance(values, dict) and "annotations" not in values:  # MJHQ
            return [str(each["prompt"]) for each in values.values()]
        listed = values["annotations"] if isinstance(values, dict) else values
        by_id = {int(each["id"]): str(each["caption"]).strip() for each in listed}
        chosen = list(by_id) if ids is None else [int(n) for n in Path(ids).read_text().split()]
        return [by_id[number] for number in chosen]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegscaleError(
            path,
            "cannot be read as captions",
            found=repr(error),
            fix="Give COCO's captions_val2014.json with ids, MJHQ's meta_data.json, or .jsonl.",
        ) from error


def build(config: Config) -> TextToImage:
    return TextToImage(config)
