"""How long a run is, in what portions, and what is written on the way."""

from dataclasses import dataclass, field

from regscale.config import Invalid
from regscale.training.profiler import ProfileConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Counts of updates, except where a comment says otherwise."""

    num_steps: int = 400_000
    batch_size: int = 256  # samples of one update, of all devices together
    micro_batch: int | None = None  # samples of one backward; null: a device's whole part
    num_workers: int = 4  # loader processes of each device
    log_every: int = 100
    checkpoint_every: int = 10_000
    keep_last: int = 2  # checkpoints
    max_writers: int = 64  # files of a checkpoint, at most: ranks share them
    keep_every: int = 100_000  # checkpoints at multiples of this are never removed; 0: none
    preview_every: int = 10_000  # 0: no pictures
    max_skipped: int = 20  # updates in a row without a finite gradient before the run stops
    wandb: str | None = None  # a project's name
    compare_every: int = 1_000  # updates between comparisons of ranks' copies; 0: never
    start_seconds: float = 1_800.0  # without progress until the first update is done (compiling)
    hang_seconds: float = 600.0  # the same later; then stacks are written and the run ends
    peak_tflops: float | None = None  # of a device in bf16, where it is not a known one
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "log_every", "checkpoint_every", "keep_last")
        seconds = ("start_seconds", "hang_seconds")
        for key in (*positive, *seconds, "max_skipped", "max_writers"):
            if getattr(self, key) < 1:
                raise Invalid(key, "is positive", found=getattr(self, key), fix="Give 1 or more.")
        for key in ("num_workers", "keep_every", "preview_every", "compare_every"):
            if getattr(self, key) < 0:
                raise Invalid(key, "is not negative", found=getattr(self, key), fix="0: none.")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size:
            raise Invalid(
                "micro_batch",
                "is between 1 and batch_size",
                found=f"{self.micro_batch} with batch_size {self.batch_size}",
                fix="Make it smaller, or null for one backward a step.",
            )
