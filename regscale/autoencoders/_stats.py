"""Mean and standard deviation of each latent channel, in a safetensors file.

C channels. Autoencoders whose channels differ in scale (end-to-end tuned ones, f16d32) train better
on standardised channels than under one factor for all.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regscale.errors import RegscaleError


class ChannelStats(NamedTuple):
    """Of unscaled posterior samples."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor  # (C, 1, 1)

    def standardise(self, sample: Tensor) -> Tensor:
        return (sample - self.mean) / self.std

    def restore(self, latents: Tensor) -> Tensor:
        return latents * self.std + self.mean

    def to(self, device: torch.device) -> "ChannelStats":
        return ChannelStats(self.mean.to(device), self.std.to(device))


def read_stats(file: str, channels: int) -> ChannelStats:
    """The statistics in a file that `write_stats` wrote for an autoencoder of `channels`."""
    path = Path(file).expanduser()
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _wrong(path, str(error) or "no such file") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"mean": (channels,), "std": (channels,)}:
        raise _wrong(path, f"{shapes} for {channels} channels")
    if not bool((tensors["std"] > 0).all()):
        raise _wrong(path, "a channel without deviation")
    mean, std = (tensors[name].float().reshape(-1, 1, 1) for name in ("mean", "std"))
    return ChannelStats(mean, std)


def write_stats(path: Path, mean: Tensor, std: Tensor, facts: dict[str, str]) -> None:
    """The file; `facts` says of what the statistics are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"mean": mean.float().contiguous(), "std": std.float().contiguous()}, path, facts)


def _wrong(path: Path, found: str) -> RegscaleError:
    return RegscaleError(
        f"autoencoder.stats: {path}",
        "holds no mean and std of each latent channel",
        found=found,
        fix="Make it with python -m regscale.prepare latent_stats CONFIG --out FILE.",
    )
