"""Data: where samples come from, and the one endless sequence that a run reads them in."""

from regscale.data._loader import NoiseShapes, batches, draw_noise
from regscale.data._order import sample_indices
from regscale.data._source import Source

__all__ = ["NoiseShapes", "Source", "batches", "draw_noise", "sample_indices"]
