"""A folder of class folders of images, as ImageNet is unpacked: train/n01440764/*.JPEG.

Images are decoded and cropped in the loader's workers; latents and features are computed live.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from regscale.config import Invalid
from regscale.data._images import Unusable, decode, is_picture
from regscale.errors import RegscaleError
from regscale.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`root` holds one folder a class; classes are numbered in the order of their names."""

    root: str = "data/imagenet/train"
    size: int = 256  # of the square that is cut from the middle (ADM's crop), in pixels

    def __post_init__(self) -> None:
        if self.size < 1:
            raise Invalid("size", "is positive", found=self.size, fix="The paper: 256 or 512.")


class ImageFolder:
    """The images of all class folders, in the order of their paths."""

    def __init__(self, config: Config) -> None:
        self.root = Path(config.root)
        self.image_size = (config.size, config.size)

    @cached_property
    def samples(self) -> list[tuple[str, int]]:
        """(path below root, label) of every image; the folder is walked at first use."""
        folders = sorted(p for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []
        found = [
            (f"{folder.name}/{path.name}", label)
            for label, folder in enumerate(folders)
            for path in sorted(folder.iterdir())
            if is_picture(path.name)
        ]
        if not found:
            raise RegscaleError(
                self.root,
                "holds no images in class folders",
                found=f"{len(folders)} folders" if self.root.is_dir() else "no such folder",
                fix="Set data.root to a folder such as imagenet/train with one folder a class.",
            )
        return found

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    @cached_property
    def fingerprint(self) -> str:
        """Of the names, labels and size; not of the pixels."""
        text = "\n".join(f"{name} {label}" for name, label in self.samples)
        return hashlib.blake2b(f"{self.image_size}\n{text}".encode(), digest_size=16).hexdigest()

    def read(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        chosen = [self.samples[i] for i in indices]
        return Batch(
            keys=tuple(name for name, _ in chosen),
            positions=torch.as_tensor(positions, dtype=torch.int64),
            images=torch.stack([self._decode(name) for name, _ in chosen]),
            labels=torch.tensor([label for _, label in chosen], dtype=torch.int64),
        )

    def _decode(self, name: str) -> torch.Tensor:
        try:
            payload = (self.root / name).read_bytes()
            return decode(payload, self.image_size[0], crop="centre", chance=(0.0, 0.0, 0.0))
        except (OSError, Unusable) as error:
            raise RegscaleError(
                self.root / name,
                "cannot be read as an image",
                found=error,
                fix="Replace the file, or remove it and choose another run name.",
            ) from error


def build(config: Config) -> ImageFolder:
    """The folder as a source; nothing is read yet."""
    return ImageFolder(config)
