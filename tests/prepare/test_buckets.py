"""Pictures of shards sorted by aspect, and a run on them to a rectangular picture."""

import io
import json
import logging
import tarfile
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from regscale import assemble
from regscale import sample as drawing
from regscale import train as training
from regscale.config import load
from regscale.data import shards, spelled, verify_shard
from regscale.errors import RegscaleError
from regscale.prepare.__main__ import main
from regscale.prepare._aspects import nearest_aspect, sizes_of_area
from regscale.recipe import RunConfig
from regscale.resize import resized
from regscale.training import train
from regscale.training.loop import open_loader
from tests.autoencoders.test_sd_vae import BOTH, save_tiny
from tests.data.packing import index, pack
from tests.prepare.test_end_to_end import save_dinov2
from tests.training.test_loop import assert_same_run

SIDES = [(60, 60), (50, 80), (80, 50), (64, 60), (30, 29), (90, 55), (41, 70), (33, 32), (52, 86)]
RULE = ["--side", "32", "--step", "8", "--max-aspect", "2", "--workers", "1"]
SIZES = ["24x40", "32x32", "40x24"]
MODEL = """
name: buckets
autoencoder: {kind: sd_vae, factor: 4}
conditioning: {kind: words, width: 16}
targets: {dinov2: {kind: dinov2}}
entangle: {dinov2: {weight: 0.03}}
align: {dinov2: {weight: 0.5, depth: 1, projector: 16}}
model:
  {kind: sit, depth: 2, hidden_size: 32, num_heads: 4, patch_size: 2, qk_norm: true,
   qk_norm_kind: rms, rope: true}
times: {shift_places: 64}
ema: {decays: [0.9]}
device: cpu
training:
  {num_steps: 4, batch_size: 4, micro_batch: 2, num_workers: 0, log_every: 1, checkpoint_every: 4,
   preview_every: 0}
sampling: {solver: {kind: euler, num_steps: 2}}
"""


def gradient(height: int, width: int, number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def packed(root: Path) -> Path:
    """Two shards of pictures of many aspects with captions, and a field that will not fit."""
    samples = [
        (f"s{i}", {
            "png": gradient(*sides, i), "txt": b"a red circle", "moments.npy": b"of another crop",
            "json": json.dumps({"caption": "a red circle"}).encode(),
        })
        for i, sides in enumerate(SIDES)
    ]  # fmt: skip
    for number in range(2):
        pack(root / f"{number:05d}.tar", samples[number::2])
    index(root)
    (root / "classes.txt").write_text("circles\n")
    return root


def contents(shard: Path) -> dict[str, dict[str, bytes]]:
    """Payloads by key and field."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, field = member.name.partition(".")
            found.setdefault(key, {})[field] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("max_aspect", [1.0, 1.5, 2.0, 4.0])
def test_the_sizes_of_an_area_are_within_it_and_no_row_more_would_be(max_aspect: float) -> None:
    found = sizes_of_area(512, step=64, max_aspect=max_aspect)
    assert (512, 512) in found
    for height, width in found:
        assert height % 64 == width % 64 == 0
        assert (width, height) in found
        assert height * width <= 512 * 512 < min(height, width) * (max(height, width) + 64)
        assert max(height, width) <= max_aspect * min(height, width)


def test_the_sizes_at_512_pixels() -> None:
    found = sizes_of_area(512, step=64, max_aspect=2.0)
    assert [spelled(size) for size in found] == [
        "384x640", "448x576", "512x512", "576x448", "640x384"
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_no_size_has_a_nearer_aspect(height: int, width: int) -> None:
    sizes = sizes_of_area(512, step=64, max_aspect=2.0)
    best = nearest_aspect((height, width), sizes)
    factors = [abs(log(height / width * w / h)) for h, w in sizes]
    assert abs(log(height / width * best[1] / best[0])) == pytest.approx(min(factors), abs=1e-12)


def test_each_picture_comes_into_one_bucket_with_what_was_said_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = packed(tmp_path / "plain"), tmp_path / "out"
    with caplog.at_level(logging.INFO):
        main(["buckets", str(folder), str(out), *RULE])
    assert sorted(p.name for p in out.iterdir() if p.name != "prepare") == SIZES
    seen: list[str] = []
    for name in SIZES:
        size = tuple(map(int, name.split("x")))
        for shard in sorted((out / name).glob("*.tar")):
            assert verify_shard(shard)[1] == []
            for key, fields in contents(shard).items():
                assert sorted(fields) == ["json", "png", "txt"]
                with Image.open(io.BytesIO(fields["png"])) as picture:
                    assert picture.size == size[::-1]
                sides = SIDES[int(key.removeprefix("s"))]
                assert (
                    spelled(nearest_aspect(sides, sizes_of_area(32, step=8, max_aspect=2))) == name
                )
                seen.append(key)
        about = json.loads((out / name / "shards.json").read_text())
        source = shards.build(shards.Config(urls=(str(out / name),), fields=("images",)))
        assert about["samples"] == source.num_samples
        assert (out / name / "classes.txt").read_text() == "circles\n"
    assert sorted(seen) == sorted(f"s{i}" for i in range(len(SIDES)))
    assert f"{out / '24x40'}: 3 samples, 33.3%, in 2 shards" in caplog.messages


def test_a_bucket_without_pictures_is_told_and_not_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = packed(tmp_path / "plain"), tmp_path / "out"
    main(["buckets", str(folder), str(out), "--sizes", "32x32,8x64", "--workers", "1"])
    told = "8x64: no picture is nearest to it; leave it out of data.sources"
    assert told in caplog.messages
    assert not (out / "8x64").exists()


def test_a_killed_command_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packed(tmp_path / "plain")
    main(["buckets", str(folder), str(tmp_path / "whole"), *RULE])
    out = tmp_path / "parts"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    main(["buckets", str(folder), str(out), *RULE])
    assert not list(out.glob("*/shards.index"))
    (out / "32x32/00001.tar").unlink()  # as if the kill had come before its name
    monkeypatch.delenv("RANK")
    main(["buckets", str(folder), str(out), *RULE])
    made, whole = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (out, tmp_path / "whole")
    )
    assert made == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "32x32,64"], "of different aspects"),
        (["--sizes", "32x32,axb"], "of different aspects"),
        (["--side", "4", "--step", "8"], "with a step of the side at most"),
        (["--quality", "0"], "is from 1 to 100"),
    ],
)
def test_sizes_without_sense_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(RegscaleError, match=message):
        main(["buckets", str(packed(tmp_path / "plain")), str(tmp_path / "out"), *words])


def test_other_sizes_in_the_same_folder_and_damage_are_refused(tmp_path: Path) -> None:
    folder, out = packed(tmp_path / "plain"), tmp_path / "out"
    main(["buckets", str(folder), str(out), *RULE])
    with pytest.raises(RegscaleError, match=r"begun with another plan.*sizes: 24x40"):
        main(["buckets", str(folder), str(out), "--sizes", "32x32"])
    pack(folder / "00002.tar", [("bad", {"png": b"no picture", "txt": b"a"})])
    with pytest.raises(RegscaleError, match=r"sample bad: has no JPEG, PNG or WebP picture"):
        main(["buckets", str(folder), str(tmp_path / "other"), *RULE])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Buckets, plain and encoded by a real AutoencoderKL and Dinov2Model of tiny size."""
    root = tmp_path_factory.mktemp("buckets")
    blocks = {f"{way}_block_types": BOTH[w::2] * 3 for w, way in enumerate(("down", "up"))}
    save_tiny(root / "vae", 0, block_out_channels=(8, 8, 8), **blocks)
    save_dinov2(root / "dinov2", 0)
    (root / "run.yaml").write_text(MODEL)
    main(["buckets", str(packed(root / "plain")), str(root / "png"), *RULE])
    for name in SIZES:
        words = [str(root / "png" / name), "--out", str(root / "fp32" / name), "--size", name]
        words += ["--patches", "--dtype", "fp32", "--batch-size", "2"]
        main(["encode", str(root / "run.yaml"), *words, *towers(root)])
    return root


def towers(root: Path) -> list[str]:
    vae = [f"autoencoder.{key}={root / 'vae'}" for key in ("model", "decoder")]
    return [*vae, f"targets.dinov2.model={root / 'dinov2'}"]


def config(root: Path, runs: Path, kind: str, fields: str, *overrides: str) -> RunConfig:
    sources = ", ".join(
        f"{name}: {{kind: shards, urls: ['{root / kind / name}'], image_size: {name}, "
        f"fields: {fields}, crop: none}}"
        for name in SIZES
    )
    (runs / "run.yaml").write_text(
        f"{MODEL}runs: {runs / 'runs'}\n"
        f"data: {{kind: buckets, batch_size: '${{training.batch_size}}', sources: {{{sources}}}}}\n"
    )
    return load(RunConfig, runs / "run.yaml", [*towers(root), *overrides])


LIVE = "[images, captions]"
STORED = "[moments, dinov2, dinov2.patches, captions]"


def test_stored_fields_of_all_buckets_are_what_is_computed_live(root: Path, tmp_path: Path) -> None:
    """Moments, tokens, and patches on the grid of each batch; 1e-4 is the rounding of other
    batch sizes."""
    live = assemble.job(config(root, tmp_path, "png", LIVE))
    stored = assemble.job(config(root, tmp_path, "fp32", STORED))
    sizes = set()
    pair = open_loader(live, 0), open_loader(stored, 0)
    for batches in zip(*pair, range(9), strict=False):
        a, b = live.towers.encode(batches[0]), stored.towers.encode(batches[1])
        assert batches[0].keys == batches[1].keys
        for x, y in zip(a.clean.leaves, b.clean.leaves, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            a.features[0].patches, b.features[0].patches, rtol=1e-4, atol=1e-4
        )
        size = batches[0].image_size
        assert size is not None
        assert a.features[0].patches is not None
        assert a.features[0].patches.shape[1] == size[0] * size[1] // 64
        assert a.clean.latents.shape[-2:] == (size[0] // 4, size[1] // 4)
        sizes.add(spelled(size))
    assert sorted(sizes) == SIZES
    for feed in pair:
        feed.close()


def test_a_run_on_buckets_resumes_to_the_bit_and_draws_rectangles(
    root: Path, tmp_path: Path
) -> None:
    whole = assemble.job(config(root, tmp_path, "fp32", STORED, "name=whole"))
    assert train(whole).step == 4
    for steps in (1, 4):
        job = assemble.job(
            config(root, tmp_path, "fp32", STORED, "name=parts", f"training.num_steps={steps}")
        )
        train(job)
    assert_same_run(whole.folder, job.folder)
    loaded = assemble.trained(whole.folder, device="cpu")
    assert loaded.image_size == (32, 32)
    wide = resized(loaded, (24, 40))
    images = drawing.sample(
        wide, ["a red circle"], seeds=[0], guidance=loaded.config.sampling.guidance
    )
    assert images.shape == (1, 3, 24, 40)


def test_buckets_begin_with_the_weights_of_a_run_of_another_size(
    root: Path, tmp_path: Path
) -> None:
    source = f"{{kind: shards, urls: ['{root / 'png/24x40'}'], fields: {LIVE}, image_size: 24x40}}"
    words = ["name=one", f"data={source}", "training.num_steps=2"]
    before = assemble.job(config(root, tmp_path, "png", LIVE, *words))
    train(before)
    assert before.engine.model.grid == (3, 5)
    start = ["init_from.weights=model", f"init_from.path={before.folder}"]
    job = assemble.job(config(root, tmp_path, "png", LIVE, *start))
    assert job.engine.model.grid == (4, 4)
    pairs = zip(before.engine.model.parameters(), job.engine.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    fresh = assemble.job(config(root, tmp_path, "png", LIVE, "name=fresh")).engine.model
    pairs = zip(fresh.parameters(), job.engine.model.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_a_field_that_was_encoded_at_another_size_is_refused_with_its_bucket(
    root: Path, tmp_path: Path
) -> None:
    swapped = f"data.sources.24x40.urls=['{root / 'fp32/40x24'}']"
    with pytest.raises(RegscaleError) as caught:
        assemble.job(config(root, tmp_path, "fp32", STORED, swapped))
    assert caught.value.where == "buckets: data.sources.24x40"
    assert "at 40x24" in caught.value.found
    assert "at 24x40" in caught.value.found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.rope=false",
            r"of one size for a model with a table of places.*24x40, 32x32, 40x24",
        ),
        ("model.patch_size=4", r"data\.sources\.24x40: has latents of whole patches, 4 x 4"),
        ("data.batch_size=8", r"data\.batch_size: is that of the training, 4; found 8"),
        ("data.sources.24x40.image_size=25x40", r"image size.*is a multiple of 4 on each side"),
    ],
)
def test_what_buckets_cannot_be_trained_with_is_refused(
    root: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(RegscaleError, match=message):
        assemble.pieces(config(root, tmp_path, "png", LIVE, override))


def test_a_validation_on_buckets_is_refused(root: Path, tmp_path: Path) -> None:
    section = "{kind: buckets, batch_size: 4, sources: {a: {kind: digits}}}"
    words = ["evaluation.evaluate_every=1", f"evaluation.validation.seen={section}"]
    with pytest.raises(RegscaleError, match=r"validation\.seen: has pictures of one size"):
        assemble.job(config(root, tmp_path, "png", LIVE, *words))


def test_encoding_one_bucket_of_a_run_needs_its_size(root: Path, tmp_path: Path) -> None:
    config(root, tmp_path, "png", LIVE)
    words = [str(tmp_path / "run.yaml"), str(root / "png/24x40"), "--out", str(tmp_path / "out")]
    with pytest.raises(RegscaleError, match=r"--size: is needed.*one of 24x40, 32x32, 40x24"):
        main(["encode", *words, *towers(root)])
    with pytest.raises(RegscaleError, match=r"--size: is HEIGHTxWIDTH in pixels; found 24by40"):
        main(["encode", *words, *towers(root), "--size", "24by40"])


def test_statistics_are_of_all_buckets_in_batches_that_divide_the_training_s(
    root: Path, tmp_path: Path
) -> None:
    config(root, tmp_path, "png", LIVE)
    words = [str(tmp_path / "run.yaml"), *towers(root), "--num-samples", "36", "--num-workers", "0"]
    main(["latent-stats", *words, "--out", str(tmp_path / "two"), "--batch-size", "2"])
    main(["latent-stats", *words, "--out", str(tmp_path / "four"), "--batch-size", "4"])
    two, four = (load_file(tmp_path / name) for name in ("two", "four"))
    assert two.keys() == four.keys() == {"mean", "std"}
    for name in two:  # up to the rounding of another batch size
        torch.testing.assert_close(two[name], four[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(RegscaleError, match="places of 2 batches of 4"):
        main(["latent-stats", *words, "--out", str(tmp_path / "six"), "--batch-size", "6"])


def test_a_dry_run_names_the_buckets(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(root, tmp_path, "png", LIVE)
    training.main([str(tmp_path / "run.yaml"), "--dry-run", *towers(root)])
    assert "buckets               24x40, 32x32, 40x24 pixels" in capsys.readouterr().out
