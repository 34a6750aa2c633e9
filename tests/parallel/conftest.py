"""Runs of engines on several processes: each one is made once, whichever tests look at it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.processes import Pool

ENGINES: dict[str, tuple[str, ...]] = {
    "single": ("engine.kind=single",),
    "ddp": ("engine.kind=ddp",),
    "fsdp2": ("engine.kind=fsdp2",),
    "zero1": ("engine.kind=zero", "engine.stage=1"),
    "zero2": ("engine.kind=zero", "engine.stage=2"),
    "zero3": ("engine.kind=zero", "engine.stage=3"),
}
COMMON = ("optimizer.learning_rate=1e-4", "training.num_steps=100")


class Runs:
    """`runs(ranks, case, engine, *overrides, **options)`: what each rank returned."""

    def __init__(self, pool: Pool, file: Path) -> None:
        self._pool, self._file = pool, file
        self._made: dict[Any, list[Any]] = {}

    def __call__(
        self, ranks: int, case: Callable[..., Any], engine: str, *overrides: str, **options: Any
    ) -> list[Any]:
        values = (*COMMON, f"runs={self._file.parent}", *ENGINES[engine], *overrides)
        key = (ranks, case, values, repr(options))
        if key not in self._made:
            self._made[key] = self._pool.run(ranks, case, str(self._file), values, **options)
        return self._made[key]


@pytest.fixture(scope="session")
def runs(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    file = tmp_path_factory.mktemp("engines") / "tiny.yaml"
    file.write_text(TINY)
    return Runs(pool, file)
