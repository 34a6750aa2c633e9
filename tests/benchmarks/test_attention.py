"""The table of attention's backends, made where only torch's own can run."""

from pathlib import Path

import pytest
import torch

from benchmarks._step_timing import Timing
from benchmarks.attention import Case, main, write
from regscale.errors import RegscaleError


def test_the_table_compares_what_can_run_with_sdpa(tmp_path: Path) -> None:
    cases = [Case("S/2", 2, 2, 16, 9), Case("S/2", 2, 2, 16, 9, padding=4)]
    device, timing = torch.device("cpu"), Timing(steps=1, repeats=1)
    first, second, legend = write(tmp_path / "a" / "b.json", cases, timing, device=device)
    assert first.startswith("S/2 9 tokens of 2:  sdpa* ")
    assert second.startswith("S/2 9 tokens of 2, 4 padded in every other:  sdpa* ")
    assert "(1.00)" in first
    assert "  math " in second
    assert "auto" in legend


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(RegscaleError, match=r"benchmarks\.attention: needs a CUDA device; found"):
        main([])
