"""The Stable Diffusion autoencoder (arXiv 2112.10752, f8d4), its halves from two fine-tunings.

REG encodes with sd-vae-ft-mse and decodes with sd-vae-ft-ema. Each half is read at its first use
and the other half of its file is dropped.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor, nn

from regscale.config import Invalid
from regscale.errors import RegscaleError
from regscale.types import Moments

RECIPE = "pixels in [-1, 1]; log-variance clamped to [-30, 20]"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`model` encodes and `decoder` decodes, each a hub id or a folder; null: the same."""

    model: str = "stabilityai/sd-vae-ft-mse"
    decoder: str | None = "stabilityai/sd-vae-ft-ema"
    scale: float = 0.18215  # latents = (sample - shift) * scale
    shift: float = 0.0
    latent_channels: int = 4
    factor: int = 8  # pixels a latent covers on each side
    decode_batch: int = 16  # images decoded at once
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # moments are fp32 always

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise Invalid("scale", "is positive", found=self.scale, fix="SD's is 0.18215.")
        for key in ("latent_channels", "factor", "decode_batch"):
            if getattr(self, key) < 1:
                raise Invalid(
                    key, "is a positive number", found=getattr(self, key), fix="Give 1 or more."
                )


class SdVae:
    """The frozen autoencoder."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._device = torch.device("cpu")

    @cached_property
    def encoder(self) -> nn.Sequential:
        """Pixels to mean and log-variance, stacked along the channels."""
        vae = _load(self.config.model, self.config)
        return self._frozen(vae.encoder, vae.quant_conv)

    @cached_property
    def decoder(self) -> nn.Sequential:
        """Unscaled latents to pixels."""
        vae = _load(self.config.decoder or self.config.model, self.config)
        return self._frozen(vae.post_quant_conv, vae.decoder)

    def _frozen(self, *parts: nn.Module | None) -> nn.Sequential:
        half = nn.Sequential(*[part for part in parts if part is not None])
        half.to(self._device, DTYPES[self.config.dtype]).eval().requires_grad_(False)
        return half

    @cached_property
    def identity(self) -> str:
        """A hash of the encoder and its preprocessing: of all that stored moments depend on."""
        tensors = sorted(_digest(tensor) for tensor in self.encoder.state_dict().values())
        text = "\n".join([RECIPE, self.config.dtype, *tensors])
        return f"sd_vae-{xxhash.xxh3_128_hexdigest(text.encode())}"

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W), from the config alone; `_load` holds the weights to it."""
        factor = self.config.factor
        if height % factor or width % factor:
            raise RegscaleError(
                "sd_vae: image size",
                f"is a multiple of {factor} on each side",
                found=f"{height}x{width}",
                fix=f"Crop to {height // factor * factor}x{width // factor * factor}.",
            )
        return self.config.latent_channels, height // factor, width // factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Moments:
        """The posterior of uint8 images, unscaled, fp32."""
        pixels = images.float() / 127.5 - 1
        with torch.autocast(images.device.type, enabled=False):
            stacked = self.encoder(pixels.to(DTYPES[self.config.dtype])).float()
        mean, log_variance = stacked.chunk(2, dim=1)
        return Moments(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def latents(self, moments: Moments, noise: Tensor) -> Tensor:
        """(mean + std * noise - shift) * scale."""
        sample = moments.mean + moments.std * noise
        return (sample - self.config.shift) * self.config.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 images, cut to whole numbers and not rounded, as the published samplers do."""
        unscaled = latents.float() / self.config.scale + self.config.shift
        images, dtype = [], DTYPES[self.config.dtype]
        with torch.autocast(latents.device.type, enabled=False):
            for part in torch.split(unscaled.to(dtype), self.config.decode_batch):
                pixels = self.decoder(part).float()
                images.append(torch.clamp(255 * ((pixels + 1) / 2), 0, 255).to(torch.uint8))
        return torch.cat(images)

    def to(self, device: torch.device) -> "SdVae":
        self._device = torch.device(device)
        for half in ("encoder", "decoder"):
            if half in self.__dict__:
                getattr(self, half).to(self._device)
        return self


def build(config: Config) -> SdVae:
    """The autoencoder, nothing loaded yet."""
    return SdVae(config)


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    bits = xxhash.xxh3_128_hexdigest(data.reshape(-1).view(torch.uint8).numpy().data)
    return f"{tuple(data.shape)} {data.dtype} {bits}"


def _load(name: str, config: Config) -> Any:
    try:
        vae, report = AutoencoderKL.from_pretrained(
            str(Path(name).expanduser()) if name.startswith("~") else name,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(name, error) from error
    if report["missing_keys"]:
        raise _unreadable(name, f"weights without {', '.join(sorted(report['missing_keys']))}")
    channels, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    if (channels, factor) != (config.latent_channels, config.factor):
        raise RegscaleError(
            f"sd_vae: model {name}",
            f"does not fit latent_channels {config.latent_channels} and factor {config.factor}",
            found=f"latent_channels {channels} and factor {factor}",
            fix=f"Set autoencoder.latent_channels={channels} autoencoder.factor={factor}.",
        )
    return vae


def _unreadable(name: str, found: object) -> RegscaleError:
    return RegscaleError(
        f"sd_vae: model {name}",
        "cannot be loaded",
        found=str(found).splitlines()[0].rstrip("."),
        fix="Give a hub id and a connection, or a folder that save_pretrained wrote.",
    )
