"""Which backend computes an attention: a fixed table and never a timing, for resume is exact."""

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple, get_args

from regscale.errors import RegscaleError
from regscale.layers.attention import cudnn, flash, flex, math, sdpa
from regscale.layers.attention._setting import HALF, Missing, Setting

Backend = Literal["auto", "flash", "cudnn", "sdpa", "flex", "math"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MODULES = {"flash": flash, "cudnn": cudnn, "sdpa": sdpa, "flex": flex, "math": math}

# Read from the top: the first row whose condition holds and whose backend can run is taken.
TABLE: tuple[tuple[str, Callable[[Setting], bool], str], ...] = (
    # Elsewhere than on CUDA, torch has one fused kernel and the packages none.
    ("sdpa", lambda s: s.device_type != "cuda", "the fused kernel of this device"),
    # fp32 and fp64 would be rounded to 16 bits by the others.
    ("sdpa", lambda s: s.dtype not in HALF, "flash and cuDNN compute in 16 bits only"),
    # A mask sends torch to its memory-efficient kernel, which also computes what it then hides.
    ("flash", lambda s: s.has_lengths, "it never computes padded keys"),
    # Where torch itself puts cuDNN first: Hopper and data-centre Blackwell.
    (
        "cudnn",
        lambda s: s.capability[0] in (9, 10),
        "torch's first choice on Hopper and Blackwell",
    ),
    ("sdpa", lambda s: s.deterministic, "its backward repeats its bits"),
    ("sdpa", lambda s: True, "torch's flash kernel, which needs no package"),  # noqa: ARG005
)


class Choice(NamedTuple):
    """What computes attention, and why: for the log and the checkpoint."""

    backend: str
    kernel: str  # with its version
    reason: str
    setting: str

    def __str__(self) -> str:
        return f"attention {self.backend} ({self.kernel}) for {self.setting}: {self.reason}"


def choose(setting: Setting, available: Collection[str]) -> tuple[str, str]:
    """The backend that `auto` takes, and the reason."""
    return next(
        (backend, reason)
        for backend, holds, reason in TABLE
        if backend in available and holds(setting)
    )


def available(setting: Setting) -> tuple[str, ...]:
    """The backends that can compute it on this machine."""
    return tuple(name for name, module in MODULES.items() if module.missing(setting) is None)


def decide(backend: Backend, setting: Setting) -> Choice:
    """The choice for a setting; a backend that was asked for by name and cannot run is an error."""
    reason = "asked for by name"
    if backend == "auto":
        name, reason = choose(setting, available(setting))
    else:
        name = backend
        _refuse(name, MODULES[name].missing(setting))
    return Choice(name, MODULES[name].kernel(setting), reason, str(setting))


def _refuse(backend: str, missing: Missing | None) -> None:
    if missing is not None:
        raise RegscaleError(
            "model.attention",
            f"{backend} needs {missing.needs}",
            found=missing.found,
            fix=missing.fix,
        )
