"""What a checkpoint of many ranks costs in files, opens and small bytes, and what a save costs
training.

    python -m benchmarks.checkpoint_plan                 # 8B parameters on 4,096 ranks
    python -m benchmarks.checkpoint_plan stall           # 130M parameters on this machine
    python -m benchmarks.checkpoint_plan stall --device cuda --out FILE.json

The plan runs the format's own code for every writer; only the tensors' bytes are neither hashed
nor written, and files are sparse.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks._step_timing import machine
from regscale.checkpoint import Piece, Reader, Record, begin, commit, part, save, write_part
from regscale.checkpoint.group import group_of
from regscale.checkpoint.read import ALONE
from regscale.cluster import join
from regscale.training.saver import MAX_WRITERS, Saver

KINDS = ("model", "ema/0.9999", "optimizer/exp_avg", "optimizer/exp_avg_sq")
WIDTH, DEPTH = 3584, 34  # 18 * width^2 weights a block: 7.9B
STALL_WIDTH, STALL_DEPTH = 768, 12  # SiT-B's: 128M

Shape = tuple[int, ...]
_MEMORY = torch.zeros(2**24)


def shapes_of(width: int, depth: int) -> dict[str, Shape]:
    """The parameters of a transformer with adaLN (DiT): 18 * width^2 a block."""
    linear = {
        "attn.qkv": (3, 1),
        "attn.proj": (1, 1),
        "mlp.fc1": (4, 1),
        "mlp.fc2": (1, 4),
        "adaLN_modulation.1": (6, 1),
    }
    shapes: dict[str, Shape] = {"y_embedder.embedding_table.weight": (1001, width)}
    for block in range(depth):
        for name, (rows, columns) in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"blocks.{block}.{name}.bias"] = (rows * width,)
    return shapes


def cut(shapes: dict[str, Shape], ranks: int, first: int, stop: int) -> Iterator[Piece]:
    """What the ranks [first, stop) hold together where rows are dealt out in equal chunks, as
    fully_shard does; a range without elements is none."""
    for kind in KINDS:
        for name, shape in shapes.items():
            row = math.prod(shape[1:])
            chunk = -(-shape[0] // ranks) * row
            start, end = (min(rank * chunk, shape[0] * row) for rank in (first, stop))
            values = torch.empty(end - start, device="meta")
            yield Piece(f"{kind}/{name}", shape, start, end, values)


class _NoHash:
    def update(self, data: memoryview) -> None: ...
    def reset(self) -> None: ...
    def hexdigest(self) -> str:
        return "0" * 32


def _zeros(piece: Piece) -> torch.Tensor:
    numel = piece.values.numel()
    return _MEMORY[:numel] if numel <= len(_MEMORY) else torch.empty(numel)


def write_sparse(folder: Path, writer: int, pieces: Iterable[Piece]) -> str:
    """A part with true header, index and size, and no bytes."""
    with (
        mock.patch.object(part, "xxhash", SimpleNamespace(xxh3_128=_NoHash)),
        mock.patch.object(part, "write_all", return_value=None),
    ):
        digest = write_part(folder, writer, pieces, fetch=_zeros)
    index = json.loads((folder / f"part-{writer:05d}.json").read_bytes())
    os.truncate(folder / f"part-{writer:05d}.safetensors", index["size"])
    return digest


def plan(shapes: dict[str, Shape], ranks: int, max_writers: int, root: Path) -> dict[str, Any]:
    """The counts, from a checkpoint that is made under `root`."""
    groups = sorted({group_of(rank, ranks, max_writers) for rank in range(ranks)})
    folder = begin(root, 1)
    parts = [write_sparse(folder, g.writer, cut(shapes, ranks, g.first, g.stop)) for g in groups]
    first = groups[0]
    with tempfile.TemporaryDirectory(dir=root) as other:
        each = (p for rank in range(first.stop) for p in cut(shapes, ranks, rank, rank + 1))
        assert write_sparse(Path(other), 0, each) == parts[0], "ranges of ranks join in a file"
    final = commit(folder, parts, Record(step=1, samples=0, config={}))
    start = perf_counter()
    reader = Reader(final)
    seconds = perf_counter() - start
    indexes = [path.stat().st_size for path in sorted(final.glob("part-*.json"))]
    data = [path.stat().st_size for path in sorted(final.glob("part-*.safetensors"))]
    blocks = [number for number, file in enumerate(reader._files) for _ in range(file.num_blocks)]
    return {
        "parameters": sum(map(math.prod, shapes.values())),
        "ranks": ranks,
        "files": len(list(final.iterdir())),
        "data_bytes": sum(data),
        "largest_file_bytes": max(data),
        "pieces": sum(len(pieces) for pieces in reader._pieces.values()),
        "ranges_of_ranks": len(KINDS) * sum(_holders(shape, ranks) for shape in shapes.values()),
        "index_bytes": sum(indexes),
        "manifest_bytes": (final / "manifest.json").stat().st_size,
        "creates_at_a_save": len(list(final.iterdir())),
        "opens_at_a_commit": len(indexes),
        "small_files_read_at_a_resume": 1 + len(indexes),
        "opens_to_verify": sum(len(set(blocks[rank::ranks])) for rank in range(ranks)),
        "most_blocks_of_a_rank": -(-len(blocks) // ranks),
        "seconds_to_open": seconds,
    }


def _holders(shape: Shape, ranks: int) -> int:
    """How many ranks hold rows of a tensor."""
    return -(-shape[0] // -(-shape[0] // ranks))


def stall(
    shapes: dict[str, Shape], root: Path, repeats: int, device: torch.device
) -> dict[str, Any]:
    """How long training stands still: a save that is waited for, and one in the background."""
    pieces = [
        Piece.whole(f"{kind}/{name}", torch.randn(shape, device=device))
        for kind in KINDS
        for name, shape in shapes.items()
    ]
    synchronous, stalls, background = [], [], []
    with Saver(root / "background", ALONE, keep_last=1, keep_every=0) as saver:
        for step in range(repeats + 1):
            record = Record(step=step, samples=0, config={})
            start = perf_counter()
            save(root / "waited", pieces, record)
            synchronous.append(perf_counter() - start)
            start = perf_counter()
            saver.save(pieces, record)
            stalls.append(saver.stall_seconds)
            saver.wait(strict=True)
            background.append(perf_counter() - start)
    return {
        **machine(device),
        "parameters": sum(map(math.prod, shapes.values())),
        "state_bytes": sum(piece.values.nbytes for piece in pieces),
        "synchronous_seconds": median(synchronous[1:]),
        "stall_seconds_first": stalls[0],  # its memory is made
        "stall_seconds": median(stalls[1:]),
        "background_seconds": median(background[1:]),
        "ratio": median(stalls[1:]) / median(synchronous[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("plan", "stall"), default="plan")
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--max-writers", type=int, default=MAX_WRITERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary one")
    parser.add_argument("--device", default="cpu", help="where the state of a stall lies")
    parser.add_argument("--out", type=Path, help="a JSON file besides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.what == "plan":
            figures = plan(
                shapes_of(WIDTH, DEPTH), options.ranks, options.max_writers, Path(folder)
            )
        else:
            shapes, device = shapes_of(STALL_WIDTH, STALL_DEPTH), join(options.device).device
            figures = stall(shapes, Path(folder), options.repeats, device)
    told = json.dumps(figures, indent=1)
    print(told)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(told + "\n")


if __name__ == "__main__":
    main()
