"""Which checkpoints of a run there are, which of them to trust, and which to keep."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path

from regscale.checkpoint.data_file import UNREADABLE
from regscale.checkpoint.files import purge, reported
from regscale.checkpoint.format import MANIFEST, Phase, no_phase, step_name
from regscale.checkpoint.read import ALONE, Reader
from regscale.cluster import Cluster
from regscale.errors import RegscaleError

log = logging.getLogger(__name__)

# A save of a step that exists sets the existing one aside as `.replaced` until it is done.
_NAME = re.compile(r"step-(\d+)(\.replaced)?")


def candidates(root: Path) -> list[Path]:
    """The folders of checkpoints, newest step first, unverified."""
    with reported(root, UNREADABLE):
        names = [path.name for path in root.iterdir()] if root.exists() else []
    matches = filter(None, map(_NAME.fullmatch, names))
    return [root / m[0] for m in sorted(matches, key=lambda m: (-int(m[1]), m[2] is not None))]


def newest(root: Path, cluster: Cluster = ALONE) -> Reader | None:
    """The newest intact checkpoint, every byte of it verified; None where there is none at all.

    Several ranks share the reading and agree. Damaged ones are passed over with a warning. Where
    all are damaged this raises: a run never starts again from nothing unasked.
    """
    folders = cluster.from_first(lambda: candidates(root))
    for folder in folders:
        try:
            return cluster.together(partial(_verified, folder, cluster))
        except RegscaleError as error:
            if cluster.first:
                log.warning("damaged checkpoint passed over: %s", error)
    if folders:
        raise damaged(root, folders)
    return None


def is_one(path: Path) -> bool:
    """Whether a folder is a checkpoint, and not one that holds checkpoints."""
    return (path / MANIFEST).exists()


def find(path: Path, cluster: Cluster = ALONE) -> Reader | None:
    """The checkpoint that `path` is, verified, or else the newest intact one of a run folder."""
    if cluster.from_first(partial(is_one, path)):
        return cluster.together(partial(_verified, path, cluster))
    return newest(path / "checkpoints", cluster)


def _step_of(folder: Path) -> int:
    """As the name of a candidate has it."""
    return int(folder.name.partition(".")[0].removeprefix("step-"))


def _verified(folder: Path, cluster: Cluster) -> Reader:
    """A checkpoint of which this rank has verified its share."""
    reader = Reader(folder, cluster)
    reader.verify(share=cluster.rank, shares=cluster.world_size)
    return reader


def damaged(root: Path, folders: list[Path]) -> RegscaleError:
    """What to raise where no checkpoint of a run is intact."""
    return RegscaleError(
        root,
        "holds no intact checkpoint to resume from",
        found=f"{len(folders)} damaged: {', '.join(folder.name for folder in folders)}",
        fix="Restore one from a copy, or choose another run folder to start from nothing.",
    )


def set_aside(root: Path, *, resumed: int, saved: int) -> None:
    """Rename as `.damaged` what a run passed over when it resumed from an older step.

    So nothing counts it, also once the run has saved newer ones. That of step `saved` stays:
    what is being saved replaces it.
    """
    for folder in candidates(root):
        step = _step_of(folder)
        if step <= resumed or step == saved:
            continue
        aside = root / f"{step_name(step)}.damaged"
        if aside.exists():
            purge(aside)
        try:
            folder.rename(aside)
        except OSError as error:
            log.warning("%s: damaged, and could not be set aside (%s)", folder, error)
        else:
            log.warning("%s: damaged, and set aside as %s; nothing loads that", folder, aside.name)


def retain(
    root: Path,
    *,
    saved: int,
    keep_last: int,
    keep_every: int = 0,
    keep_step: int | None = None,
    phase: Phase = no_phase,
) -> list[Path]:
    """Delete all but the newest `keep_last` checkpoints, those at multiples of `keep_every` and
    that of `keep_step`.

    Steps are counted in updates; 0 keeps no milestones. What does not open, and what is newer
    than the step that the run just `saved`, is neither counted nor deleted, so damage never costs
    an intact checkpoint. Returns what was deleted.
    """
    assert keep_last >= 1, "the newest checkpoint is always kept"
    kept, deleted = 0, []
    for folder in candidates(root):
        if _step_of(folder) > saved:  # the run passed it over
            continue
        try:
            step = Reader(folder).step
        except RegscaleError as error:
            log.warning("damaged checkpoint neither counted nor deleted: %s", error)
            continue
        if kept < keep_last:
            kept += 1
        elif step != keep_step and (not keep_every or step % keep_every):
            deleted += [folder] if purge(folder, phase=phase) else []
    return deleted
