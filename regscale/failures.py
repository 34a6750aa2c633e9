"""Why tasks of a job ended, one file for each different reason, in the folder of the job that a
launcher made. The batch script reads them when all have ended (docs/slurm.md)."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path


def host() -> str:
    """This node, by the name that Slurm knows."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def folder() -> Path | None:
    """Of this incarnation of the job; None outside a launcher."""
    job = os.environ.get("REGSCALE_JOB")
    return Path(job) / f"failures-{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else None


def leave_word(
    folder: Path, kind: str, message: str, *, rank: int, host: str, nodes: tuple[str, ...] = ()
) -> bool:
    """`error` is a user's fault, `fault` any other, `silent` a rank that does not answer. True on
    the task that says it first, which is the one to print it."""
    facts = {"kind": kind, "message": message, "rank": rank, "host": host, "nodes": list(nodes)}
    name = hashlib.sha256(f"{kind} {message}".encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.json", "x") as file:
            json.dump(facts, file)
    except FileExistsError:
        return False
    except OSError:  # this node sees the disk no more: better said twice than not
        return True
    return True
