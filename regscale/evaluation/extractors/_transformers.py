"""What extractors of the transformers library share: the model, and its own processor on Pillow."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from regscale.evaluation.extractors import Extracted
from regscale.evaluation.extractors._exact import exactly
from regscale.pretrained import identity, load, place, reading


class TransformersExtractor:
    """A frozen vision model in fp32; weights are read at the first use."""

    def __init__(
        self,
        kind: str,
        name: str,
        *,
        source: Any,  # a class with from_pretrained
        features: Callable[[Any, Tensor], Tensor],  # of the model and its input
        width: Callable[[Any], int],  # of the model's config
        taken: str,  # what the features are, in words: part of the identity
        processing: Mapping[str, Any],  # in place of what the processor's file says
    ) -> None:
        self.kind, self.name, self.taken = kind, name, taken
        self._source, self._features, self._width = source, features, width
        self._processing = dict(processing)
        self._device = torch.device("cpu")

    @cached_property
    def model(self) -> Any:
        model = load(self._source, self.name, kind=self.kind, dtype=torch.float32)
        return model.to(self._device).eval().requires_grad_(False)

    @cached_property
    def processor(self) -> Any:
        """On Pillow: published figures were made with it, and tensors resize a little otherwise."""
        with reading(self.name, kind=self.kind):
            return AutoImageProcessor.from_pretrained(
                place(self.name), use_fast=False, trust_remote_code=False, **self._processing
            )

    @property
    def width(self) -> int:
        return self._width(self.model.config)

    @cached_property
    def identity(self) -> str:
        settings = self.processor.to_dict()
        names = ("size", "crop_size", "do_center_crop", "resample", "image_mean", "image_std")
        recipe = [self.taken, *(f"{name} {settings.get(name)}" for name in names)]
        return identity(self.kind, recipe, self.model.state_dict().values())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        pictures = list(images.permute(0, 2, 3, 1).cpu().numpy())
        ready = self.processor(pictures, return_tensors="pt", input_data_format="channels_last")
        with exactly(self._device):
            features = self._features(self.model, ready["pixel_values"].to(self._device))
        return Extracted(features.float())

    def to(self, device: torch.device) -> "TransformersExtractor":
        self._device = torch.device(device)
        if "model" in self.__dict__:
            self.model.to(self._device)
        return self
