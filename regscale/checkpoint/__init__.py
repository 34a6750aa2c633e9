"""Checkpoints that cannot lie: written whole or not at all, and verified before they are used."""

from regscale.checkpoint.format import BLOCK_BYTES, Piece, Record
from regscale.checkpoint.lease import Lease, LeaseLost
from regscale.checkpoint.part import write_part
from regscale.checkpoint.read import Reader
from regscale.checkpoint.retention import (
    candidates,
    damaged,
    find,
    is_one,
    newest,
    retain,
    set_aside,
)
from regscale.checkpoint.write import abandon, begin, commit, save

__all__ = [
    "BLOCK_BYTES",
    "Lease",
    "LeaseLost",
    "Piece",
    "Reader",
    "Record",
    "abandon",
    "begin",
    "candidates",
    "commit",
    "damaged",
    "find",
    "is_one",
    "newest",
    "retain",
    "save",
    "set_aside",
    "write_part",
]
