"""The loop: resume to the bit, micro-batches, a full disk, a gradient that is not finite."""

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regscale import assemble
from regscale.checkpoint import LeaseLost, Reader, candidates, newest
from regscale.errors import RegscaleError
from regscale.training import Job, StopFlag, train
from regscale.training.loop import update
from tests.conftest import MakeConfig


def final_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors of the newest checkpoint, and the losses of every step."""
    reader = Reader(candidates(folder / "checkpoints")[0])
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    drop = {"images_per_second", "memory_gib", "mfu", "wait"}  # of the machine
    losses = {x["step"]: {k: v for k, v in x.items() if k not in drop} for x in lines}
    return {name: reader.tensor(name) for name in reader.names()}, losses


def assert_same_run(a: Path, b: Path) -> None:
    (tensors, losses), (others, other_losses) = final_state(a), final_state(b)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert losses == other_losses


def damage(folder: Path, step: int) -> None:
    """Flip a bit of a checkpoint."""
    data = next((folder / f"checkpoints/step-{step:08d}").glob("*.safetensors"))
    content = bytearray(data.read_bytes())
    content[-100] ^= 4
    data.write_bytes(content)


@pytest.mark.parametrize("engine", ["fp32", "bf16", "fp16"])
def test_a_run_stopped_anywhere_resumes_to_the_bit(tiny: MakeConfig, engine: str) -> None:
    """Weights, averages, moments and losses, in every precision, over two interruptions."""
    common = [f"engine.precision={engine}", "training.log_every=2"]
    whole = assemble.job(tiny("name=whole", "training.num_steps=9", *common))
    assert train(whole).step == 9
    first = random.Random(engine).randint(1, 4)
    for steps in (first, first + 3, 9):
        job = assemble.job(tiny("name=parts", f"training.num_steps={steps}", *common))
        train(job)
    assert_same_run(whole.folder, job.folder)


def test_loader_processes_do_not_change_the_run(tiny: MakeConfig) -> None:
    jobs = [assemble.job(tiny(f"name=w{n}", f"training.num_workers={n}")) for n in (0, 2)]
    for job in jobs:
        train(job)
    assert_same_run(jobs[0].folder, jobs[1].folder)


def test_resuming_across_the_end_of_alignment_changes_nothing(tiny: MakeConfig) -> None:
    stop = "align.vit.stop_step=5"
    whole = assemble.job(tiny("name=whole", "training.num_steps=8", stop))
    train(whole)
    for steps in (3, 5, 6, 8):
        job = assemble.job(tiny("name=parts", f"training.num_steps={steps}", stop))
        train(job)
    assert_same_run(whole.folder, job.folder)


def test_after_its_stop_step_a_projector_keeps_its_bits(tiny: MakeConfig) -> None:
    before = assemble.job(tiny("training.num_steps=3", "align.vit.stop_step=3"))
    train(before)
    old, _ = final_state(before.folder)
    after = assemble.job(tiny("training.num_steps=6", "align.vit.stop_step=3"))
    train(after)
    new, losses = final_state(after.folder)
    kept = [name for name in new if "projectors." in name]
    assert len(kept) == 6 * 5  # six tensors: weights, two averages, two moments
    assert all(torch.equal(old[name], new[name]) for name in kept)
    assert not torch.equal(old["model/wg_norm.weight"], new["model/wg_norm.weight"])
    assert losses[6]["align_vit"] == 0


def gradients(job: Job) -> dict[str, torch.Tensor]:
    """The gradients of one update, caught before the optimizer clears them."""
    caught: dict[str, torch.Tensor] = {}
    step = job.engine.step

    def catch() -> object:
        caught.update({n: p.grad.clone() for n, p in job.engine.model.named_parameters()})
        return step()

    job.engine.step = catch  # type: ignore[method-assign, assignment]
    from regscale.training.loop import open_loader

    means, _ = update(job, next(open_loader(job, 0)))
    caught["losses"] = torch.stack(means[:-1])
    return caught


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_add_up_to_one_batch(tiny: MakeConfig, micro: int) -> None:
    one = gradients(assemble.job(tiny()))
    parts = gradients(assemble.job(tiny(f"training.micro_batch={micro}")))
    torch.testing.assert_close(parts.pop("losses"), one.pop("losses"), rtol=0, atol=1e-6)
    for name, want in one.items():
        if "attn.qkv.bias" in name:  # the key third has no true gradient
            continue
        assert float((parts[name] - want).norm()) <= 1e-5 * float(want.norm()), name


def test_a_full_disk_on_the_way_is_told_and_training_goes_on(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from regscale.checkpoint import part

    write_file = part.write_file

    def full(path: Path, data: bytes) -> None:
        if "step-00000002" in str(path):
            raise OSError(28, "No space left on device")
        write_file(path, data)

    monkeypatch.setattr(part, "write_file", full)
    job = assemble.job(tiny("training.checkpoint_every=2"))
    assert train(job).step == 6
    assert "training goes on without this checkpoint" in caplog.text
    assert [p.name for p in candidates(job.checkpoints)] == ["step-00000006", "step-00000004"]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    before = [p.clone() for p in job.engine.model.parameters()]
    for index, value in enumerate((float("nan"), float("inf"), 1.0)):
        for p in job.engine.model.parameters():
            p.grad = torch.full_like(p, value)
        applied = bool(job.engine.step().applied)
        same = all(
            torch.equal(a, b) for a, b in zip(before, job.engine.model.parameters(), strict=True)
        )
        assert (applied, same) == (index == 2, index != 2)


def test_a_run_without_finite_gradients_stops_and_names_the_quantity(tiny: MakeConfig) -> None:
    job = assemble.job(tiny("training.max_skipped=3"))
    with torch.no_grad():
        job.engine.model.x_embedder.proj.bias.fill_(float("nan"))
    with pytest.raises(RegscaleError, match=r"3 updates in a row were skipped.*loss, denoise"):
        train(job)


def test_a_finished_run_says_so_and_its_command_does_nothing_more(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    assert train(job).reason == "finished"
    marker = json.loads((job.folder / "marker.json").read_text())
    assert marker == {"step": 6, "samples": 48, "reason": "finished"}
    state = final_state(job.folder)[0]
    again = assemble.job(tiny())
    assert train(again).step == 6
    assert all(torch.equal(v, final_state(job.folder)[0][k]) for k, v in state.items())


def test_retention_keeps_the_last_and_the_milestones(tiny: MakeConfig) -> None:
    options = ["checkpoint_every=1", "keep_last=2", "keep_every=3"]
    job = assemble.job(tiny(*[f"training.{x}" for x in options]))
    train(job)
    steps = [int(p.name[5:]) for p in candidates(job.checkpoints)]
    assert steps == [6, 5, 3]


def test_the_newest_checkpoint_damaged_means_the_one_before(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    whole = assemble.job(tiny("name=whole"))
    train(whole)
    job = assemble.job(tiny("name=parts"))
    train(job)
    damage(job.folder, 6)
    again = assemble.job(tiny("name=parts"))
    assert train(again).step == 6
    assert "damaged checkpoint passed over" in caplog.text
    assert_same_run(whole.folder, again.folder)


def test_retention_counts_no_checkpoint_that_a_start_passed_over(tiny: MakeConfig) -> None:
    """One flipped bit of step 4, which opens as if nothing were: step 3 is saved behind it, and
    step 5 before it."""
    kept = []
    for steps, keep_last, every in ((4, 2, 2), (3, 1, 9), (5, 2, 9)):
        options = (f"num_steps={steps}", f"keep_last={keep_last}", f"checkpoint_every={every}")
        job = assemble.job(tiny(*[f"training.{x}" for x in options]))
        train(job)
        kept.append([int(p.name[5:]) for p in candidates(job.checkpoints)])
        if steps == 4:
            damage(job.folder, 4)
            reader = newest(job.checkpoints)  # as a command that only reads
            assert reader is not None
            assert (reader.step, len(candidates(job.checkpoints))) == (2, 2)
    assert kept == [[4, 2], [3], [5, 3]]


def test_a_run_that_lost_its_lease_saves_nothing_more(tiny: MakeConfig) -> None:
    """F10: another process has taken over after the second update."""
    job = assemble.job(tiny("training.checkpoint_every=4", "training.preview_every=2"))

    def take_over(step: int) -> None:
        path = job.folder / "lease.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "token": "another"}))

    with pytest.raises(LeaseLost, match="another process has taken over this run"):
        train(replace(job, preview=take_over))
    assert not job.checkpoints.exists()


REFUSALS = [
    ("model.hidden_size=64", r"was made with another model\.hidden_size; found .*32 -> 64"),
    ("seed=1", r"was made with another seed; found seed: 0 -> 1"),
    ("training.batch_size=4", r"another training\.batch_size"),
    ("data.split=judge", r"another data\.split"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_a_run_does_not_resume_as_another_run(tiny: MakeConfig, change: str, message: str) -> None:
    train(assemble.job(tiny()))
    with pytest.raises(RegscaleError, match=message):
        train(assemble.job(tiny("training.num_steps=8", change)))


ARMS = {
    "sit": ["entangle.vit.weight=0", "align.vit.weight=0"],
    "repa": ["entangle.vit.weight=0"],
    "token": ["align.vit.weight=0"],
    "reg": [],
}


@pytest.mark.parametrize("arm", ARMS)
def test_the_four_arms_are_configs_of_one_program(tiny: MakeConfig, arm: str) -> None:
    job = assemble.job(tiny(*ARMS[arm]))
    train(job)
    names = "".join(name for name, _ in job.engine.model.named_parameters())
    assert ("wg_norm" in names) == (arm in ("token", "reg"))
    assert ("projectors.0" in names) == (arm in ("repa", "reg"))
    last = json.loads((job.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("tokens_vit" in last) == (arm in ("token", "reg"))
    assert ("align_vit" in last) == (arm in ("repa", "reg"))


def test_pictures_that_cannot_be_written_do_not_stop_training(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    job = assemble.job(tiny("training.preview_every=2"))
    job.folder.mkdir(parents=True)
    (job.folder / "samples").write_text("a file where a folder should be")
    assert train(job).step == 6
    assert "training goes on without these pictures" in caplog.text


def test_a_torn_line_of_metrics_is_dropped(tiny: MakeConfig) -> None:
    train(assemble.job(tiny("training.num_steps=3")))
    job = assemble.job(tiny())
    path = job.folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo\n{"step": 4')
    train(job)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_run_that_goes_on_is_not_marked_as_finished(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(assemble.job(tiny("training.num_steps=3")))
    job = assemble.job(tiny())
    monkeypatch.setattr(job.engine, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(job)
    assert not (job.folder / "marker.json").exists()


def test_a_label_beyond_the_classes_is_refused(tiny: MakeConfig) -> None:
    job = assemble.job(tiny("conditioning.num_classes=5", "conditioning.names=null"))
    with pytest.raises(RegscaleError, match=r"digit-\d+: has a label that is not between 0 and 4"):
        train(job)


def test_a_wish_to_stop_during_set_up_ends_before_the_first_step(tiny: MakeConfig) -> None:
    job = assemble.job(tiny())
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (train(job, stop).step, candidates(job.checkpoints)) == (0, [])
    assert json.loads((job.folder / "marker.json").read_text())["reason"] == "SIGTERM"


def test_data_may_move(tiny: MakeConfig, tmp_path: Path) -> None:
    from PIL import Image

    for place in ("here", "there"):
        for name in ("a", "b"):
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / place / name / f"{i}.png")
    for place, steps in (("here", 2), ("there", 4)):
        data = ["data.kind=image_folder", f"data.root={tmp_path / place}", "data.size=8"]
        assert train(assemble.job(tiny(*data, f"training.num_steps={steps}"))).step == steps


def test_what_may_change_is_logged_and_a_field_of_later_has_its_default(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """F28: also for a checkpoint of a program that did not know a setting yet."""
    job = assemble.job(tiny("training.num_steps=3"))
    values = {name: dict(job.values[name]) for name in ("training", "model")}
    del values["training"]["compare_every"], values["model"]["qk_norm"]
    train(replace(job, values={**job.values, **values}))
    caplog.set_level("INFO")
    assert train(assemble.job(tiny("optimizer.learning_rate=2e-3"))).step == 6
    changes = [x for x in caplog.messages if x.startswith("resuming with a changed setting: ")]
    assert [change.partition(": ")[2] for change in changes] == [
        "optimizer.learning_rate: 0.001 -> 0.002",
        "training.num_steps: 3 -> 6",
    ]
