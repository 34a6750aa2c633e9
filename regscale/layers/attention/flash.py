"""FlashAttention: a package made for the device where one is installed, else torch's own copy.

Packages are known by name and imported when they are chosen. All take (B, L, heads, head_dim).
"""

from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from regscale.layers.attention._setting import Missing, Setting, constant, needs_tensor_cores

TORCH = "torch.nn.attention.varlen"
PACKAGES = (  # module, distribution, majors of compute capability it is made for; the first wins
    ("flash_attn.cute", "flash-attn-4", (10,)),
    ("flash_attn_interface", "flash-attn-3", (9,)),
    ("flash_attn", "flash-attn", (8, 9, 10, 11, 12)),
)
_LOADED: dict[str, ModuleType] = {}


def missing(setting: Setting) -> Missing | None:
    lacking = needs_tensor_cores(setting, widest_head=256)
    if lacking is not None:
        return lacking
    if (
        setting.has_lengths
        and _module_name(setting.capability[0]) == TORCH
        and not installed(TORCH)
    ):
        return Missing(
            "the package flash-attn, or torch 2.10, for key lengths",
            f"neither, with torch {torch.__version__}",
            "Install one of them, or choose auto.",
        )
    return None


def kernel(setting: Setting) -> str:
    """The package that computes it, with its version: other versions may round otherwise."""
    chosen = _module_name(setting.capability[0])
    for module, distribution, _ in PACKAGES:
        if module == chosen:
            return f"{module} {_version(distribution)}"
    return f"torch {torch.__version__}"


def attend(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None) -> Tensor:
    module = _module_name(_major(q))
    if key_lengths is None and module == TORCH:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, L, heads, head_dim)
    if key_lengths is None:
        made = _loaded(module).flash_attn_func(q, k, v, deterministic=_deterministic())
        return _output(made).transpose(1, 2)
    return _ragged(module, q, k, v, key_lengths).transpose(1, 2)


def _ragged(module: str, q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor) -> Tensor:
    batch, num_queries = q.shape[:2]
    starts = boundaries(key_lengths, num_queries=num_queries, num_keys=k.shape[1])
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    longest = (num_queries, k.shape[1])
    if module == TORCH:
        made = _loaded(module).varlen_attn(*packed, *starts, *longest)
    else:
        made = _loaded(module).flash_attn_varlen_func(
            *packed,
            cu_seqlens_q=starts.queries,
            cu_seqlens_k=starts.keys,
            max_seqlen_q=longest[0],
            max_seqlen_k=longest[1],
            deterministic=_deterministic(),
        )
    out: Tensor = _output(made).unflatten(0, (batch, num_queries))
    return out


def _output(made: Any) -> Tensor:
    """Some versions return the sums of the softmax as well."""
    out: Tensor = made[0] if isinstance(made, tuple) else made
    return out


class Boundaries(NamedTuple):
    """Where each of 2 B sequences begins, and the last one ends: (2 B + 1,) int32."""

    queries: Tensor
    keys: Tensor


def boundaries(key_lengths: Tensor, *, num_queries: int, num_keys: int) -> Boundaries:
    """Each sample is two sequences: its queries with its keys, and no query with its padding.

    So nothing is copied together and no length is read by the host. The kernels skip a sequence
    without queries and give its keys the gradient zero.
    """
    batch, device = len(key_lengths), key_lengths.device
    halves = torch.arange(1, 2 * batch + 2, device=device, dtype=torch.int32)
    queries = halves // 2 * num_queries  # 0 | L L | 2L 2L | ...
    first = torch.arange(batch, device=device, dtype=torch.int32) * num_keys
    ends = torch.stack([first + key_lengths.to(torch.int32), first + num_keys], dim=1)
    return Boundaries(queries, F.pad(ends.flatten(), (1, 0)))


def _deterministic() -> bool:
    """torch's own kernels read the same setting."""
    return torch.are_deterministic_algorithms_enabled()


@constant
def _major(q: Tensor) -> int:
    return torch.cuda.get_device_capability(q.device)[0]


@constant
def _module_name(major: int) -> str:
    """The first installed package that is made for such a device, else torch's own."""
    return next((name for name, _, made in PACKAGES if major in made and installed(name)), TORCH)


def _loaded(name: str) -> ModuleType:
    _load(name)
    return _LOADED[name]


@constant
def _load(name: str) -> None:
    """A compiler keeps no module as a constant, but follows a dictionary to one."""
    if name not in _LOADED:
        _LOADED[name] = import_module(name)


@cache
def installed(name: str) -> bool:
    """Whether a module is there. A folder without code, as flash-attn-4 leaves `flash_attn`, is
    not."""
    try:
        spec = find_spec(name)
    except ImportError:
        return False
    return spec is not None and spec.origin is not None


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"
