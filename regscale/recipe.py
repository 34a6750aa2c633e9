"""A whole run as one frozen value: every section of a config file, and what they must agree on."""

from dataclasses import dataclass, field
from typing import Any, Literal

from regscale.config import Invalid, slot, slots
from regscale.evaluation.during import Config as EvaluationConfig
from regscale.objective import DrawConfig, Weights
from regscale.parallel import OptimizerConfig
from regscale.path import PathName
from regscale.sampling import SamplingConfig
from regscale.sampling.guidance import check_intervals, check_scales
from regscale.schedule import Config as ScheduleConfig
from regscale.training import EmaConfig, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EntangleConfig:
    """A target whose tokens are denoised with the image. Weight 0 leaves it out.

    Noise has deviation 1, so tokens should have about that too. `unit` gives each token a root
    mean square of 1; `stats` gives each dimension mean 0 and deviation 1 by the file `stats`, made
    by python -m regscale.prepare token-stats, whose numbers are then kept with the weights.
    """

    weight: float = 0.03
    slot: int = 0  # 0 uses the published parameter names
    normalisation: Literal["none", "unit", "stats"] = "none"
    stats: str | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    guidance_scale: float | None = None  # null: as sampling.guidance has it for tokens
    guidance_interval: tuple[float, float] | None = None  # of the target's own times

    def __post_init__(self) -> None:
        _not_negative("weight", self.weight)
        _not_negative("slot", self.slot)
        check_scales(self, "guidance_scale")
        check_intervals(self, "guidance_interval")
        if (self.normalisation == "stats") != (self.stats is not None):
            raise Invalid(
                "stats",
                "is a file where normalisation is 'stats', and there alone",
                found=f"{self.stats} with normalisation {self.normalisation}",
                fix="Set both, or neither.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignConfig:
    """A target that hidden states are aligned with. Weight 0 leaves it out."""

    weight: float = 0.5
    depth: int = 8  # blocks before the projector; the paper: 4 for B, 8 for L and XL
    projector: int = 2048  # hidden width
    stop_step: int | None = None  # the update from which on it is left out

    def __post_init__(self) -> None:
        _not_negative("weight", self.weight)
        for key in ("depth", "projector"):
            if getattr(self, key) < 1:
                raise Invalid(key, "is positive", found=getattr(self, key), fix="Give 1 or more.")
        if self.stop_step is not None:
            _not_negative("stop_step", self.stop_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitConfig:
    """Weights that a new run starts from; one that resumes does not read them.

    `path` is a run folder (its newest checkpoint), a checkpoint in one, or a published .pt or
    .safetensors of REG, REPA or SiT.
    """

    path: str | None = None
    weights: Literal["ema", "model"] = "ema"  # averages, or the last update's
    decay: float | None = None  # of the averages in a run folder; null: the first


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run. Sections with a `kind` are plug-ins; see docs/design.md."""

    name: str
    runs: str = "runs"  # the folder that holds run folders
    seed: int = 0
    device: str = "auto"
    data: Any = slot("regscale.data", "digits")
    autoencoder: Any = slot("regscale.autoencoders", "identity")
    conditioning: Any = slot("regscale.conditioning", "class_label")
    targets: dict[str, Any] = slots("regscale.representations")
    entangle: dict[str, EntangleConfig] = field(default_factory=dict)
    align: dict[str, AlignConfig] = field(default_factory=dict)
    model: Any = slot("regscale.models", "sit")
    init_from: InitConfig = field(default_factory=InitConfig)
    path: PathName = "linear"
    times: DrawConfig = field(default_factory=DrawConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    engine: Any = slot("regscale.parallel", "single")
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # on the way

    def __post_init__(self) -> None:
        for section in ("entangle", "align"):
            for name in getattr(self, section):
                if name not in self.targets:
                    raise Invalid(
                        f"{section}.{name}",
                        "names no target",
                        found=", ".join(self.targets) or "no targets",
                        fix=f"Add targets.{name} with its kind.",
                    )
        taken = [entangle.slot for entangle in self.entangled.values()]
        if len(set(taken)) < len(taken):
            raise Invalid("entangle", "slots differ", found=taken, fix="Number them 0, 1, 2, ...")
        size = getattr(self.data, "batch_size", self.training.batch_size)
        if size != self.training.batch_size:
            raise Invalid(
                "data.batch_size",
                f"is that of the training, {self.training.batch_size}",
                found=size,
                fix="Write ${training.batch_size}.",
            )
        if self.path != "linear" and getattr(self.model, "clean_above", None) is not None:
            raise Invalid(
                "model.clean_above",
                "is for the linear path, on which the velocity follows from clean latents",
                found=f"path: {self.path}",
                fix="Leave it out, or set path: linear.",
            )
        if self.name in ("", ".", "..") or "/" in self.name:
            raise Invalid("name", "is a folder's name", found=repr(self.name), fix="Try 'reg'.")

    @property
    def entangled(self) -> dict[str, EntangleConfig]:
        """The targets that are entangled, in the order of their slots."""
        active = [(name, e) for name, e in self.entangle.items() if e.weight > 0]
        return dict(sorted(active, key=lambda item: item[1].slot))

    @property
    def loss_weights(self) -> Weights:
        """Of every entangled and aligned target."""
        return Weights(
            tuple(entangle.weight for entangle in self.entangled.values()),
            tuple(align.weight for align in self.aligned.values()),
        )

    @property
    def aligned(self) -> dict[str, AlignConfig]:
        """The targets that are aligned with, by name: projectors are numbered in this order,
        which must not depend on how a file is laid out."""
        return {name: align for name, align in sorted(self.align.items()) if align.weight > 0}


def _not_negative(key: str, value: float) -> None:
    if not value >= 0:  # nor a NaN
        raise Invalid(key, "is not negative", found=value, fix="0 leaves it out.")
