"""Which local paths lie on network file systems, by the table of mounts."""

from __future__ import annotations

import os
import re
from pathlib import Path

# By the first letters of their types or, for bare `fuse`, of sources. 9p and virtiofs are folders
# of a host, which may have them from anywhere: a copy costs less than random reads through it.
NETWORK = (
    *("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "weka", "panfs", "afs", "9p"),
    *("virtiofs", "glusterfs", "orangefs", "pvfs2", "quobyte", "moosefs", "mfs", "daos", "dfuse"),
    *("s3fs", "goofys", "mountpoint-s3", "gcsfuse", "blobfuse", "juicefs", "rclone", "alluxio"),
    *("sshfs",),
)


def on_network(path: str, mounts: str = "/proc/mounts") -> bool:
    """Whether a local path lies on a network file system."""
    place = os.path.realpath(path) + "/"  # first: an automounter may add to the table
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:  # no such table on this system
        return False
    best = ("", "", "")
    for line in lines:
        source, point, kind = (_plain(word) for word in line.split(" ")[:3])
        if place.startswith(point.rstrip("/") + "/") and len(point) >= len(best[1]):
            best = (source, point, kind)
    source, _, kind = best
    name = source if kind == "fuse" else kind.removeprefix("fuse.")
    return name.lower().startswith(NETWORK)


def _plain(word: str) -> str:
    """With the characters that the table writes as octal numbers."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), word)
