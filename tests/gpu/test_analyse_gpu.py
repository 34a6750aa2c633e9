"""Hidden states that were computed on a CUDA device."""

import json
from pathlib import Path

import pytest
import torch

from regscale import assemble
from regscale.evaluate.__main__ import main
from regscale.training import train
from tests.conftest import MakeConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_run_is_analysed_on_the_device_as_on_the_cpu(tiny: MakeConfig, tmp_path: Path) -> None:
    job = assemble.job(tiny("training.num_steps=60"))
    train(job)
    few = ["split=judge", "--times", "0.2", "--num-samples", "96", "--num-images", "8"]
    found = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        main(["analyse", str(job.folder), *few, "--device", device, "--out", str(out)])
        found.append(json.loads((out / "analysis.json").read_text()))
    for cpu, cuda in zip(*(each["rows"] for each in found), strict=True):
        # rounding may exchange neighbours that are as near
        assert cuda["cknna"] == pytest.approx(cpu["cknna"], abs=0.02)
    key = "token-image agreement"
    assert found[1][key] == pytest.approx(found[0][key], abs=0.02)
