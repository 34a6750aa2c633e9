"""Data: where samples come from, and the one endless sequence that a run reads them in."""

from regscale.data._device import on_device
from regscale.data._fields import refuse_stale
from regscale.data._index import index_path, index_shard, is_current, merge_folder
from regscale.data._loader import NoiseShapes, batches, draw_noise
from regscale.data._order import sample_indices
from regscale.data._size import Size, size_of, spelled
from regscale.data._source import Bucketed, Ordered, Source
from regscale.data._verify import Finding, verify_shard

__all__ = [
    "Bucketed",
    "Finding",
    "NoiseShapes",
    "Ordered",
    "Size",
    "Source",
    "batches",
    "draw_noise",
    "index_path",
    "index_shard",
    "is_current",
    "merge_folder",
    "on_device",
    "refuse_stale",
    "sample_indices",
    "size_of",
    "spelled",
    "verify_shard",
]
