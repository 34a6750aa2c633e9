"""The Inception of FID: torch-fidelity's port of the TensorFlow graph that ADM's evaluator runs.

`pool_3` is `features`; the graph's `mixed_6/conv` is `Mixed_6d.branch1x1` of the port, after its
ReLU; logits are pool features by the last matrix without its bias (1008 classes), as ADM's.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from cleanfid.resize import build_resizer
from torch import Tensor
from torch.hub import load_state_dict_from_url
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from regscale.errors import RegscaleError
from regscale.evaluation.extractors import Extracted
from regscale.evaluation.extractors._exact import exactly, float64
from regscale.pretrained import identity

SIDE = 299
SPATIAL_CHANNELS = 7  # of 17 x 17: 2023 features, about as many as pool_3 has
BEFORE = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1"),
    *("Conv2d_4a_3x3", "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a"),
    *("Mixed_6b", "Mixed_6c"),
)
AFTER = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`resize: graph` is TensorFlow's bilinear, as in ADM's evaluator; `clean` is clean-fid's."""

    weights: str | None = None  # a file of torch-fidelity's state dict; None: its published URL
    resize: Literal["graph", "clean"] = "graph"


class Inception:
    """The frozen network in fp32; weights are read at the first use."""

    width = 2048

    def __init__(self, config: Config) -> None:
        self.config = config
        self._device = torch.device("cpu")
        self._resize_clean = build_resizer("clean")

    @cached_property
    def model(self) -> Any:
        path = _file(self.config.weights)
        try:
            torch.load(path, weights_only=True, map_location="cpu")  # refuses code in the file
            model = FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=str(path)
            )
        except (OSError, RuntimeError, ValueError, TypeError, EOFError) as error:
            raise _unreadable(path, error) from error
        return model.to(self._device).eval().requires_grad_(False)

    @cached_property
    def identity(self) -> str:
        recipe = [f"resize {self.config.resize}", "pool_3, mixed_6/conv, logits without bias"]
        return identity("inception", recipe, self.model.state_dict().values())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        """pool_3 (B, 2048), mixed_6/conv (B, 17 x 17 x 7) in ADM's order, logits (B, 1008)."""
        with exactly(self._device):
            hidden = (self._resize(images).to(self._device) - 128) / 128
            for name in BEFORE:
                hidden = getattr(self.model, name)(hidden)
            spatial = self.model.Mixed_6d.branch1x1(hidden)[:, :SPATIAL_CHANNELS]
            for name in AFTER:
                hidden = getattr(self.model, name)(hidden)
            pool = hidden.flatten(1)
            logits = float64(pool) @ float64(self.model.fc.weight).T
        # the graph is channels last, and so are its flattened statistics
        return Extracted(pool, spatial.permute(0, 2, 3, 1).flatten(1), logits.float())

    def _resize(self, images: Tensor) -> Tensor:
        """(B, 3, 299, 299) fp32 in [0, 255]."""
        if self.config.resize == "graph":
            return interpolate_bilinear_2d_like_tensorflow1x(  # type: ignore[no-any-return]
                images.to(self._device).float(), size=(SIDE, SIDE), align_corners=False
            )
        pictures = images.permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([self._resize_clean(picture) for picture in pictures])
        return torch.from_numpy(resized).permute(0, 3, 1, 2)

    def to(self, device: torch.device) -> "Inception":
        self._device = torch.device(device)
        if "model" in self.__dict__:
            self.model.to(self._device)
        return self


def build(config: Config) -> Inception:
    """The extractor, nothing loaded yet."""
    return Inception(config)


def _file(weights: str | None) -> Path:
    if weights is not None:
        return Path(weights).expanduser()
    name = str(URL_INCEPTION_V3).rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    try:
        # checked against the hash that its name ends in, and kept where torch keeps such files
        load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise _unreadable(URL_INCEPTION_V3, error) from error
    return path


def _unreadable(place: object, error: Exception) -> RegscaleError:
    return RegscaleError(
        f"inception: weights {place}",
        "cannot be loaded",
        found=str(error).splitlines()[0].rstrip("."),
        fix=f"Set weights to a local copy of {URL_INCEPTION_V3}.",
    )
