"""F2-F5, F9 on two ranks: they share the reading, find damage together and take the same one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from regscale.checkpoint import newest
from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from tests.checkpoint.conftest import load_all, make_tensors, same, save_parts
from tests.processes import Pool


def _flip(folder: Path) -> None:
    """One bit, at the end: only the rank whose share holds that block reads it."""
    path = folder / "part-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _truncate(folder: Path) -> None:
    path = folder / "part-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _delete(folder: Path) -> None:
    (folder / "part-00001.safetensors").unlink()


def _mix(folder: Path) -> None:
    """A shard of another step."""
    shutil.copy(folder.parent / "step-00000001" / "part-00001.json", folder)


DAMAGES: list[Callable[[Path], None]] = [_flip, _truncate, _delete, _mix]


def _choose(cluster: Cluster, folder: str) -> None:
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("regscale").addHandler(handler)
    for damage in DAMAGES:
        root = Path(folder) / damage.__name__
        if cluster.first:
            for step in (1, 2, 3):
                save_parts(root, step)
            damage(root / "step-00000003")
        cluster.barrier()
        reader = newest(root, cluster)
        assert reader is not None
        assert reader.step == 2
        assert same(load_all(reader.folder), make_tensors(2))
        assert len(lines) == cluster.first
        assert all("damaged checkpoint passed over: " in line for line in lines)
        cluster.barrier()
        if cluster.first:
            for step in (1, 2):
                (root / f"step-{step:08d}" / "manifest.json").unlink()
        cluster.barrier()
        with pytest.raises(RegscaleError, match=r"no intact checkpoint .*3 damaged"):
            newest(root, cluster)
        lines.clear()
    logging.getLogger("regscale").removeHandler(handler)
    assert newest(Path(folder) / "absent", cluster) is None


@pytest.mark.distributed
def test_ranks_agree_on_the_newest_intact_checkpoint(pool: Pool, tmp_path: Path) -> None:
    pool.run(2, _choose, str(tmp_path))
