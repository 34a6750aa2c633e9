"""What the commands that train an embedded vision model have in common: how it is kept."""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def keep(
    command: str,
    weights: Path,
    *,
    seed: int,
    teach: Callable[[], tuple[nn.Module, Mapping[str, str]]],
) -> None:
    """Write the model that `teach` returns in half precision, with what it says of it; the same
    weights on the same machine."""
    parser = argparse.ArgumentParser(prog=command)
    parser.add_argument("--out", type=Path, default=weights)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(seed)
    begin = time.perf_counter()
    model, facts = teach()
    metadata = {**facts, "command": command}
    state = {name: value.half() for name, value in model.state_dict().items()}
    save_file(state, out, metadata=metadata)
    print(f"{out}: {out.stat().st_size:,} bytes, {time.perf_counter() - begin:.0f} s")
    for name, value in metadata.items():
        print(f"  {name}: {value}")
