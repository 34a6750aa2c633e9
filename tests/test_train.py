"""The train command: dry runs, and what it says to wrong input."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from regscale import train
from regscale.errors import RegscaleError
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]

DRY_RUNS = {  # parameters with projectors; GFLOP of a forward and of training, as counted by hand
    "b": ("139,028,496", "49.97", "149.9"),
    "l": ("467,533,328", "166.1", "498.3"),
    "xl": ("685,017,360", "242.4", "727.1"),
}


@pytest.mark.parametrize("size", DRY_RUNS)
def test_a_dry_run_prints_config_parameters_and_flops(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([str(ROOT / f"configs/imagenet_sit_{size}.yaml"), "--dry-run", "seed=5"])
    out = capsys.readouterr().out
    config = OmegaConf.create(out)
    assert config.seed == 5
    assert config.model.size.lower() == size
    assert config.targets.dinov2.kind == "dinov2"
    for figure in DRY_RUNS[size]:
        assert figure in out


def test_the_paper_s_values_are_those_of_the_configs() -> None:
    from regscale.config import load
    from regscale.recipe import RunConfig

    for size, depth in (("b", 4), ("l", 8), ("xl", 8)):
        config = load(RunConfig, ROOT / f"configs/imagenet_sit_{size}.yaml")
        assert config.align["dinov2"].depth == depth
        assert (config.entangle["dinov2"].weight, config.align["dinov2"].weight) == (0.03, 0.5)
        rule = config.optimizer
        assert (rule.learning_rate, rule.betas, rule.eps) == (1e-4, (0.9, 0.999), 1e-8)
        assert (rule.weight_decay, rule.warmup_steps, rule.max_grad_norm) == (0, 0, 1)
        assert (config.training.batch_size, config.ema.decays) == (256, (0.9999,))
        assert config.autoencoder.scale == 0.18215
        assert config.conditioning.dropout == 0.1
        assert config.times.distribution == "uniform"
        assert config.sampling.solver.num_steps == 250


REFUSALS = [
    (["{file}", "modle.depth=3"], "modle: is not a key; found 'modle'. Did you mean 'model'?"),
    (["{file}", "model.kind=sitt"], "model.kind: is not a known kind; found 'sitt'. Did you mean"),
    (["{file}x", "--dry-run"], "there is no such file"),
    (["{file}", "runs=/proc/none"], "/proc/none/tiny: cannot be written"),
    (["{file}", "align.dino.weight=1"], "align.dino: names no target; found vit"),
    (["{file}", "align.vit.depth=9"], "is a block of the model, 1 to 2; found 9"),
    (["{file}", "model.patch_size=3"], "divides the height of the latents; found 3 for 8"),
    (["{file}", "training.micro_batch=99"], "is between 1 and batch_size; found 99"),
    (["{file}", "name=a/b"], "name: is a folder's name; found 'a/b'"),
    (["{file}", "data.kind=image_folder", "data.root=/none"], "holds no images in class folders"),
    (["{file}", "device=cuda:99x"], "device"),
    (["{file}", "engine.precision=int8"], "engine.precision: has the wrong type; found 'int8'"),
    (["{file}", "times.std=0"], "times.std: is positive; found 0"),
    (["{file}", "optimizer.schedule=cosine"], "optimizer.decay_steps: says where the cosine ends"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_a_wrong_input_is_told_in_four_parts(
    tiny_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [argument.format(file=tiny_file) for argument in arguments]
    if not any(argument.startswith("runs=") for argument in filled):
        filled.append(f"runs={tmp_path}")
    with pytest.raises(RegscaleError) as caught:
        train.main(filled)
    error = caught.value
    assert message in str(error)
    assert all([error.where, error.what, error.found, error.fix])


def test_the_process_prints_the_message_alone_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TINY)
    for module, arguments in (
        ("train", ["t.yaml", "sed=3"]),
        ("sample", ["--checkpoint", "none", "--class", "1"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"regscale.{module}", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
