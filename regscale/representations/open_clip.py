"""Image embeddings of open_clip models (arXiv 2212.07143): what a prompt is compared with.

Only the image tower is kept. There are no patches, and the embedding is not divided by its norm.
"""

import os
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regscale.config import Invalid
from regscale.config.slots import nearest
from regscale.pretrained import reading
from regscale.representations._pixels import Preprocessing
from regscale.representations._vision import Family, Settings, Shape, VisionTarget
from regscale.types import Features

try:
    import open_clip
except ModuleNotFoundError as error:
    if error.name == "open_clip":
        error.name = "open_clip_torch"  # what to install is named after the library it needs
    raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Settings):
    """`model` is a name of open_clip, `hf-hub:owner/name` or `local-dir:/folder`.

    `pretrained` is a tag or a file of weights, for names alone.
    """

    model: str = "ViT-L-14"
    pretrained: str | None = "datacomp_xl_s13b_b90k"


def _shape(config: Config) -> Shape:
    with reading(config.model, kind="open_clip"):
        found = open_clip.get_model_config(config.model)
    if found is None:
        names = open_clip.list_models()
        raise Invalid(
            "model", "names a model", found=config.model, fix=nearest(config.model, names)
        )
    if ":" not in config.model:
        _check_weights(config)
    vision = found["vision_cfg"]
    size, patch = vision.get("image_size", 224), vision.get("patch_size")
    return Shape(found["embed_dim"], patch if isinstance(patch, int) else 1, int(size))


def _check_weights(config: Config) -> None:
    tags = open_clip.list_pretrained_tags_by_model(config.model)
    name = config.pretrained or ""
    if name not in tags and not os.path.isfile(name):
        raise Invalid(
            "pretrained",
            f"is a tag of {config.model} or a file of its weights",
            found=config.pretrained,
            fix=nearest(name, tags),
        )


def _load(config: Config) -> Any:
    with reading(config.model, kind="open_clip"):
        model = open_clip.create_model(
            config.model,
            None if ":" in config.model else config.pretrained,
            force_image_size=config.size,
            pretrained_text=False,
            require_pretrained=True,
        )
    return model.visual


def _preprocessing(config: Config, tower: Any) -> Preprocessing:
    del config
    values = tower.preprocess_cfg
    return Preprocessing(tuple(values["mean"]), tuple(values["std"]), values["interpolation"])


def _features(tower: Any, pixels: Tensor) -> Features:
    out = tower(pixels)
    embedding = out[0] if isinstance(out, tuple) else out  # CoCa also gives its states
    return Features(tokens=embedding[:, None], patches=None)


FAMILY = Family(
    kind="open_clip",
    token="image embedding",
    shape=_shape,
    load=_load,
    preprocessing=_preprocessing,
    features=_features,
    has_patches=False,
    square=True,
)


def build(config: Config) -> VisionTarget:
    """The target, nothing loaded yet."""
    return VisionTarget(FAMILY, config)
