"""An evaluation during training: the same at every step, on any number of processes."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from regscale import assemble
from regscale import path as diffusion_path
from regscale.cluster import Cluster, join
from regscale.config import load_values
from regscale.data import NoiseShapes, digits
from regscale.encoding import Towers
from regscale.errors import RegscaleError
from regscale.evaluation import report
from regscale.evaluation.during import Config, During, read_best
from regscale.evaluation.provenance import Making
from regscale.evaluation.suites.digits import Config as DigitsConfig
from regscale.evaluation.suites.digits import build
from regscale.evaluation.validation import TIMES, Validation
from regscale.schedule import Config as ScheduleConfig
from regscale.schedule import Schedule
from regscale.types import Prediction
from tests.processes import Pool


def validation(
    loaded: assemble.Loaded, cluster: Cluster, schedule: Schedule | None = None, **options: int
) -> Validation:
    parts = assemble.pieces(loaded.config)
    towers: Towers = assemble._towers(parts)
    return Validation(
        source=digits.build(digits.Config(split="judge")),
        shapes=NoiseShapes(latents=parts.latent_shape, tokens=parts.token_shapes),
        towers=towers,
        path=diffusion_path.build(loaded.config.path),
        schedule=schedule or assemble.schedule_of(loaded.config),
        cluster=cluster,
        **options,
    )


def losses_of(cluster: Cluster, run: str) -> dict[str, float]:
    loaded = assemble.trained(Path(run), device="cpu")
    made = validation(loaded, cluster, num_samples=21, batch_size=4)
    return dict(made(loaded.sampler.model))


def test_losses_are_at_eight_fixed_times(loaded: assemble.Loaded) -> None:
    made = validation(loaded, join("cpu"), num_samples=40, batch_size=16)
    found = made(loaded.sampler.model)
    assert found == made(loaded.sampler.model)
    assert len(found) == 2 * (8 + 1)
    at = [found[f"denoise@{t:.2f}"] for t in TIMES]
    assert found["denoise"] == pytest.approx(sum(at) / 8)
    other = validation(loaded, join("cpu"), num_samples=40, batch_size=7)(loaded.sampler.model)
    assert found == pytest.approx(other, rel=1e-5)  # sums in another order


def test_the_loss_of_no_velocity_is_the_mean_square_of_the_true_one(
    loaded: assemble.Loaded,
) -> None:
    """At every time: the velocity of the linear path does not depend on it."""

    def still(latents, tokens, *rest):  # type: ignore[no-untyped-def]
        return Prediction(latents * 0, tuple(each * 0 for each in tokens))

    found = validation(loaded, join("cpu"), num_samples=64)(still)
    values = [found[f"denoise@{t:.2f}"] for t in TIMES]
    assert max(values) - min(values) < 1e-6
    assert 1 < values[0] < 3  # noise alone is 1, the digits' own square is below 1


@pytest.mark.parametrize(
    ("target", "numbers"),
    [
        (ScheduleConfig(), 8),
        (ScheduleConfig(kind="shift", shift=0.3), 8),
        (ScheduleConfig(kind="lead", lead=0.3), 6),  # 1/16 and 3/16 are too late
        (ScheduleConfig(kind="lead", lead=1.0), 0),
        (ScheduleConfig(kind="independent"), 8),
    ],
)
def test_losses_are_at_times_and_of_leaves_that_training_has(
    loaded: assemble.Loaded, target: ScheduleConfig, numbers: int
) -> None:
    schedule, seen = Schedule((target,)), []

    def still(latents, tokens, time, token_times, *rest):  # type: ignore[no-untyped-def]
        seen.append((time, *token_times))
        return Prediction(latents * 0, tuple(each * 0 for each in tokens))

    found = validation(loaded, join("cpu"), schedule, num_samples=2, batch_size=2)(still)
    assert [float(time[0]) for time, _ in seen] == list(TIMES)
    lead = target.lead if target.kind == "lead" else 0.0
    moves = []
    for time, token_time in seen:
        trained, moving = schedule.training(time / (1 + lead), [time] * len(schedule.own_times))
        # fp32 numbers of another order of operations
        torch.testing.assert_close(trained.tokens[0], token_time, rtol=0, atol=1e-6)
        moves.append(moving is None or bool(moving.tokens[0].all()))
    told = {name for name in found if name.startswith("tokens_vit@")}
    assert told == {f"tokens_vit@{t:.2f}" for t, moved in zip(TIMES, moves, strict=True) if moved}
    assert len(told) == numbers
    assert ("tokens_vit" in found) is bool(told)
    values = [found[name] for name in told]
    assert not told or found["tokens_vit"] == pytest.approx(sum(values) / len(values))


@pytest.mark.distributed
def test_losses_do_not_depend_on_processes(run: Path, pool: Pool) -> None:
    alone = losses_of(join("cpu"), str(run))
    for found in pool.run(2, losses_of, str(run)):
        assert found == pytest.approx(alone, rel=1e-5)


def during(loaded: assemble.Loaded, folder: Path, cluster: Cluster, best: str) -> During:
    return During(
        every=10,
        folder=folder,
        cluster=cluster,
        averaged=nullcontext,
        sampler=loaded.sampler,
        guidance=loaded.config.sampling.guidance,
        making=Making(sampler="euler", ema=0.9),
        suites={"small": build(DigitsConfig(num_samples=20))},
        validations={"judge": validation(loaded, cluster, num_samples=16, batch_size=8)},
        best=best,
    )


def evaluated(cluster: Cluster, run: str, folder: str) -> dict[str, float]:
    loaded = assemble.trained(Path(run), device="cpu")
    return during(loaded, Path(folder), cluster, "small/FD-digits")(100)


@pytest.mark.distributed
def test_figures_do_not_depend_on_processes(run: Path, pool: Pool, tmp_path: Path) -> None:
    alone = evaluated(join("cpu"), str(run), str(tmp_path / "one"))
    two = pool.run(2, evaluated, str(run), str(tmp_path / "two"))
    assert two[0] == two[1] == pytest.approx(alone, rel=1e-5)
    folder = tmp_path / "two" / "evaluations" / "during-00000100" / "small"
    assert sorted(p.name for p in folder.iterdir()) == ["evaluation.json", "evaluation.txt"]
    assert report.read(folder).entries[0].provenance["ema"] == 0.9


def test_the_best_step_is_kept(loaded: assemble.Loaded, tmp_path: Path) -> None:
    made = during(loaded, tmp_path, join("cpu"), "judge/denoise")
    before = {name: value.clone() for name, value in loaded.sampler.model.state_dict().items()}
    assert read_best(tmp_path) is None
    first = made(10)
    assert read_best(tmp_path) == {
        "figure": "judge/denoise", "value": first["judge/denoise"], "step": 10
    }  # fmt: skip
    with torch.no_grad():
        loaded.sampler.model.final_layer.linear.bias += 5.0
    try:
        assert made(20)["judge/denoise"] > first["judge/denoise"]
        assert (read_best(tmp_path) or {})["step"] == 10
        scores = during(loaded, tmp_path, join("cpu"), "nothing")
        with pytest.raises(RegscaleError, match="is a figure of this evaluation"):
            scores(30)
    finally:
        loaded.sampler.model.load_state_dict(before)


def test_the_section_takes_suites_and_data_by_name() -> None:
    values = {
        "evaluate_every": 500,
        "suites": {"small": {"kind": "digits", "num_samples": 50}},
        "validation": {"judge": {"kind": "digits", "split": "judge"}},
    }
    config = load_values(Config, values, "here")
    assert config.suites["small"].num_samples == 50
    assert config.validation["judge"].split == "judge"
