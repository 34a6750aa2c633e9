"""Mean and standard deviation of each dimension of a target's tokens, in a safetensors file.

R width. The tokens of a target share them. They are read once, at a run's start: its checkpoints
hold them from then on.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regscale.errors import RegscaleError


def read_stats(file: str, width: int, *, where: str) -> tuple[Tensor, Tensor]:
    """(mean, std), (R,) each, of a file that `write_stats` wrote for tokens of this width."""
    path = Path(file).expanduser()
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _wrong(where, path, str(error) or "no such file") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"mean": (width,), "std": (width,)}:
        raise _wrong(where, path, f"{shapes} for tokens of width {width}")
    if not bool((tensors["std"] > 0).all()):
        raise _wrong(where, path, "a dimension without deviation")
    return tensors["mean"].float(), tensors["std"].float()


def stats_or_nan(file: str, width: int, *, where: str) -> tuple[Tensor, Tensor]:
    """The same; NaN where there is no file, for a checkpoint to fill in."""
    if Path(file).expanduser().exists():
        return read_stats(file, width, where=where)
    return torch.full((width,), torch.nan), torch.full((width,), torch.nan)


def write_stats(path: Path, mean: Tensor, std: Tensor, facts: dict[str, str]) -> None:
    """The file; `facts` says of what the statistics are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"mean": mean.float().contiguous(), "std": std.float().contiguous()}, path, facts)


def _wrong(where: str, path: Path, found: str) -> RegscaleError:
    return RegscaleError(
        f"{where}: {path}",
        "holds no mean and std of each dimension of these tokens",
        found=found,
        fix="Make it with python -m regscale.prepare token-stats CONFIG.",
    )
