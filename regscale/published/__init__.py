"""Published checkpoints of REG, REPA and SiT: names, architecture, safe reading, both ways."""

from regscale.published.from_run import from_run
from regscale.published.infer import architecture, num_heads
from regscale.published.layout import Architecture, shapes
from regscale.published.official import from_official
from regscale.published.optimizer import NamedState, by_name
from regscale.published.read import Published, read
from regscale.published.settings import run_values
from regscale.published.to_run import save_run
from regscale.published.write import write_checkpoint, write_weights

__all__ = [
    "Architecture",
    "NamedState",
    "Published",
    "architecture",
    "by_name",
    "from_official",
    "from_run",
    "num_heads",
    "read",
    "run_values",
    "save_run",
    "shapes",
    "write_checkpoint",
    "write_weights",
]
