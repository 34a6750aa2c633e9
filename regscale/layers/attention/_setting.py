"""Where an attention runs: all that the choice of a backend may depend on."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
F = TypeVar("F", bound=Callable[..., Any])


def constant(function: F) -> F:
    """A compiler calls it while it traces and keeps the result: what it does is no part of the
    graph."""
    marked: F = torch.compiler.assume_constant_result(function)
    return marked


class Setting(NamedTuple):
    """One kind of attention call; equal settings have equal choices."""

    device_type: str
    capability: tuple[int, int]  # of a CUDA device; (0, 0) elsewhere
    dtype: torch.dtype
    head_dim: int
    has_lengths: bool
    deterministic: bool

    @classmethod
    def of(
        cls, device: torch.device, dtype: torch.dtype, *, head_dim: int, has_lengths: bool
    ) -> Self:
        """On a device of this machine, with torch's present setting of determinism."""
        cuda = device.type == "cuda"
        return cls(
            device_type=device.type,
            capability=torch.cuda.get_device_capability(device) if cuda else (0, 0),
            dtype=dtype,
            head_dim=head_dim,
            has_lengths=has_lengths,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )

    def __str__(self) -> str:
        """As a user reads it: `bfloat16 on cuda 9.0, head width 72, deterministic`."""
        capability = ".".join(map(str, self.capability)) if self.device_type == "cuda" else ""
        parts = [
            f"{str(self.dtype).removeprefix('torch.')} on {self.device_type} {capability}".rstrip(),
            f"head width {self.head_dim}",
            "key lengths" if self.has_lengths else "",
            "deterministic" if self.deterministic else "",
        ]
        return ", ".join(part for part in parts if part)


class Missing(NamedTuple):
    """What a backend needs and a setting does not have."""

    needs: str
    found: str
    fix: str


def needs_tensor_cores(setting: Setting, *, widest_head: int) -> Missing | None:
    """What flash and cuDNN share: an NVIDIA device, 16-bit inputs, rows of whole 16 bytes."""
    if setting.device_type != "cuda" or torch.version.hip or setting.capability < (8, 0):
        return Missing(
            "an NVIDIA device of compute capability 8.0 or later", str(setting), "Choose auto."
        )
    if setting.dtype not in HALF:
        return Missing("bf16 or fp16", str(setting), "Choose auto, or another engine.precision.")
    if setting.head_dim % 8 or setting.head_dim > widest_head:
        return Missing(
            f"a head width that is a multiple of 8 up to {widest_head}",
            str(setting),
            "Choose auto, or another num_heads.",
        )
    return None


def key_mask(key_lengths: Tensor, num_keys: int) -> Tensor:
    """True where a key is no padding: (B, 1, 1, num_keys)."""
    places = torch.arange(num_keys, device=key_lengths.device)
    return (places < key_lengths[:, None])[:, None, None, :]
