"""Vision models of the transformers library as families: their config says the shape."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from regscale.errors import RegscaleError
from regscale.pretrained import load, place, reading
from regscale.representations._pixels import Preprocessing, read_preprocessing
from regscale.representations._vision import Family, Settings, Shape
from regscale.types import Features


def transformers_family(
    kind: str,
    *,
    classes: Mapping[str, Any],  # by the model_type of config.json
    published: Mapping[str, Shape],  # by hub id: described without a connection
    preprocessing: Preprocessing,  # for models without a preprocessor_config.json
    token: str,
    features: Callable[[Any, Tensor], Features],
    width: Callable[[Any], int] = lambda config: config.hidden_size,
    any_size: bool = False,  # its positions are made for the input's size
    has_patches: bool = True,
    **options: Any,  # of from_pretrained
) -> Family:
    """A family whose models `from_pretrained` reads, by hub id or from a folder."""

    def model_config(name: str) -> Any:
        with reading(name, kind=kind):
            config = AutoConfig.from_pretrained(place(name), trust_remote_code=False)
        if config.model_type in classes:
            return config
        raise RegscaleError(
            f"{kind}: model {name}",
            f"is not of type {' or '.join(classes)}",
            found=config.model_type,
            fix=f"Choose one such as {next(iter(published))}, or another kind of target.",
        )

    def shape(config: Settings) -> Shape:
        if config.model in published and not Path(config.model).is_dir():
            return published[config.model]
        found = model_config(config.model)
        vision = getattr(found, "vision_config", found)
        size = None if any_size else _side(vision)
        registers = getattr(vision, "num_register_tokens", 0)
        return Shape(width(vision), int(vision.patch_size), size, registers)

    def read(config: Settings) -> Any:
        source = classes[model_config(config.model).model_type]
        return load(source, config.model, kind=kind, dtype=torch.float32, **options)

    return Family(
        kind=kind,
        token=token,
        shape=shape,
        load=read,
        preprocessing=lambda config, _: read_preprocessing(config.model, preprocessing, kind=kind),
        features=features,
        has_patches=has_patches,
    )


def _side(config: Any) -> int:
    """Of the square images a model was trained on; NaFlex models count patches instead."""
    if hasattr(config, "num_patches"):
        return int(config.num_patches**0.5) * int(config.patch_size)
    return int(config.image_size)
