"""A synthetic ImageNet from its tar of tars to a resumed run of configs/imagenet_sit_xl.yaml.

The encoders are real `AutoencoderKL` and `Dinov2Model` of tiny size; overrides shrink only sizes.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from regscale import assemble
from regscale import train as command
from regscale.config import kind_of, load
from regscale.data import verify_shard
from regscale.errors import RegscaleError
from regscale.prepare.__main__ import main
from regscale.recipe import RunConfig
from regscale.training import Job, train
from regscale.training.loop import open_loader
from regscale.types import Batch, Example
from tests.autoencoders.test_sd_vae import BOTH, save_tiny
from tests.prepare import pictures
from tests.training.test_loop import assert_same_run

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = CONFIGS / "imagenet_sit_xl.yaml"
# with EXIF, CMYK, grey, 16 bits, a PNG named JPEG, tiny and huge ones
FILES = pictures.imagenet(per_class=5) | pictures.odd_pictures()
SIDE = 32
LIVE = "[images, labels]"
HALF = "[moments, images, labels]"  # configs/parts/imagenet256_shards.yaml
WHOLE = "[moments, dinov2, dinov2.patches, labels]"


def save_dinov2(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **sizes))
    model.requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


def sizes(root: Path) -> list[str]:
    """What shrinks the run; nothing else of it changes but where things lie."""
    return [
        *("model.depth=2", "model.hidden_size=32", "model.num_heads=4"),
        *("align.dinov2.depth=1", "align.dinov2.projector=16"),
        *(f"autoencoder.model={root / 'mse'}", f"autoencoder.decoder={root / 'ema'}"),
        *("autoencoder.latent_channels=4", "autoencoder.factor=4"),
        f"targets.dinov2.model={root / 'dinov2'}",
        *("engine.compile=false", "device=cpu"),
        *("training.num_steps=6", "training.batch_size=6", "training.num_workers=0"),
        *("training.log_every=1", "training.checkpoint_every=2", "training.preview_every=0"),
    ]


def data(folder: Path, fields: str) -> list[str]:
    """Shards in the place of the folder of pictures."""
    size = f"data.image_size={SIDE}"
    return ["data.kind=shards", f"data.urls=[{folder}/*.tar]", f"data.fields={fields}", size]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders, and the tar of tars as shards of pictures, encoded in fp16 and fp32."""
    root = tmp_path_factory.mktemp("imagenet")
    blocks = {f"{way}_block_types": BOTH[w::2] * 3 for w, way in enumerate(("down", "up"))}
    for seed, name in enumerate(("mse", "ema")):
        save_tiny(root / name, seed, block_out_channels=(8, 8, 8), **blocks)
    save_dinov2(root / "dinov2", 0)
    tar = pictures.as_tar_of_tars(root / "ILSVRC2012_img_train.tar", FILES)
    words = [str(tar), str(root / "pictures"), "--size", str(SIDE), "--shard-mb", "0.045"]
    main(["images", *words, "--workers", "1"])
    for dtype in ("fp16", "fp32"):
        words = [str(CONFIG), str(root / "pictures"), "--out", str(root / dtype), "--patches"]
        words += ["--dtype", dtype, "--batch-size", "5"]
        main(["encode", *words, *sizes(root), f"data.size={SIDE}"])
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., Job]:
    """A job of the published configuration on one of the folders."""

    def make(folder: str, fields: str, *overrides: str) -> Job:
        words = [*sizes(root), *data(root / folder, fields), f"runs={tmp_path / 'runs'}"]
        return assemble.job(load(RunConfig, CONFIG, [*words, *overrides]))

    return make


def first(job: Job) -> tuple[Batch, Example]:
    batch = next(open_loader(job, 0))
    return batch, job.towers.encode(batch)


def test_encoded_shards_verify(root: Path) -> None:
    main(["verify", str(root / "fp16"), "--workers", "1"])
    results = [verify_shard(shard) for shard in sorted((root / "fp16").glob("*.tar"))]
    assert len(results) >= 3
    assert sum(samples for samples, _ in results) == len(FILES)
    assert all(not findings for _, findings in results)


@pytest.mark.parametrize(("folder", "relative"), [("fp16", 2.0**-11), ("fp32", 0.0)])
@pytest.mark.parametrize("fields", [HALF, WHOLE])
def test_a_run_on_stored_fields_sees_what_a_live_one_sees(
    run: Callable[..., Job], folder: str, relative: float, fields: str
) -> None:
    """1e-5 is the rounding of another batch size, 2^-11 that of fp16 in mean and std."""
    (batch, live), (_, stored) = first(run("pictures", LIVE)), first(run(folder, fields))
    assert batch.images is not None
    assert batch.noise is not None
    job = run("pictures", LIVE)
    moments = job.towers.autoencoder.encode(batch.images)
    size = moments.mean.abs() + moments.std * batch.noise.posterior.abs()
    bound = 0.18215 * relative * size + 1e-5
    assert ((live.clean.latents - stored.clean.latents).abs() <= bound).all()
    assert torch.equal(live.condition.labels, stored.condition.labels)  # type: ignore[union-attr]
    pairs = zip(live.features[0], stored.features[0], strict=True)
    for want, found in [*pairs, (live.clean.tokens[0], stored.clean.tokens[0])]:
        assert want is not None
        assert found is not None
        assert want.shape == found.shape
        assert ((want - found).abs() <= relative * want.abs().amax() + 1e-4).all()


@pytest.mark.parametrize("fields", [HALF, WHOLE])
def test_a_run_stopped_anywhere_resumes_to_the_bit(run: Callable[..., Job], fields: str) -> None:
    whole = run("fp16", fields, "name=whole")
    assert train(whole).step == 6
    stop = random.Random(fields).randint(1, 5)
    for steps in (stop, 6):
        job = run("fp16", fields, "name=parts", f"training.num_steps={steps}")
        train(job)
    assert_same_run(whole.folder, job.folder)


def test_a_run_resumes_where_its_shards_were_moved_to(
    run: Callable[..., Job], root: Path, tmp_path: Path
) -> None:
    whole = run("fp16", WHOLE, "name=whole")
    train(whole)
    train(run("fp16", WHOLE, "name=parts", "training.num_steps=3"))
    (tmp_path / "moved").symlink_to(root / "fp16")
    moved = [f"data.urls=[{tmp_path / 'moved'}]", "data.policy=skip", "data.timeout_seconds=60"]
    job = run("fp16", WHOLE, "name=parts", *moved)
    assert train(job).step == 6
    assert_same_run(whole.folder, job.folder)
    with pytest.raises(RegscaleError, match=r"was made with another data\.fields"):
        train(run("fp16", HALF, "name=parts"))
    with pytest.raises(RegscaleError, match=r"data has changed|fingerprint"):
        train(run("fp32", WHOLE, "name=parts"))


STALE = {
    "moments": ("autoencoder.model", lambda folder: save_vae(folder)),
    "dinov2": ("targets.dinov2.model", lambda folder: save_dinov2(folder, 9)),
}


def save_vae(folder: Path) -> str:
    blocks = {f"{way}_block_types": BOTH[w::2] * 3 for w, way in enumerate(("down", "up"))}
    return save_tiny(folder, 9, block_out_channels=(8, 8, 8), **blocks)


@pytest.mark.parametrize("field", STALE)
def test_a_field_of_other_weights_is_refused_with_both_identities(
    run: Callable[..., Job], tmp_path: Path, field: str
) -> None:
    key, save = STALE[field]
    job = run("fp16", WHOLE)
    held = job.source.identities[field]  # type: ignore[attr-defined]
    with pytest.raises(RegscaleError) as caught:
        run("fp16", WHOLE, f"{key}={save(tmp_path / 'other')}")
    assert f"holds '{field}' of another encoder than this run's" in caught.value.what
    stored, current = caught.value.found.removeprefix("stored: ").split("; current: ")
    assert stored == held
    assert current != held
    assert current.startswith(held.partition("-")[0])
    kept = {"moments": "[dinov2, images, labels]", "dinov2": HALF}[field]
    run("fp16", kept, f"{key}={tmp_path / 'other'}")  # what is not stored may be any encoder's


@pytest.mark.parametrize("field", ["moments", "dinov2"])
def test_a_field_of_pictures_of_another_size_is_refused_at_the_start(
    run: Callable[..., Job], root: Path, tmp_path: Path, field: str
) -> None:
    """The shapes of a token tell nothing: it has one width at all sizes."""
    words = [str(CONFIG), str(root / "pictures"), "--out", str(tmp_path / "large"), "--fields"]
    main(["encode", *words, field, *sizes(root), f"data.size={2 * SIDE}"])
    fields = f"[{field}, images, labels]"
    with pytest.raises(RegscaleError) as caught:
        run("fp16", fields, f"data.urls=[{tmp_path / 'large'}]")
    assert f"holds '{field}' of another encoder than this run's" in caught.value.what
    stored, current = caught.value.found.split("; current: ")
    assert stored.removeprefix("stored: ") == current.replace("at 32x32", "at 64x64")
    run("fp16", fields, f"data.urls=[{tmp_path / 'large'}]", f"data.image_size={2 * SIDE}")


def test_a_label_without_a_size_is_that_of_the_encoder_alone(
    run: Callable[..., Job], root: Path, tmp_path: Path
) -> None:
    for shard in (root / "fp16").glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    made = json.loads((root / "fp16/encode.json").read_text())["fields"]
    labels = {name: {"identity": made[name].partition(" at ")[0]} for name in made}
    (tmp_path / "shards.json").write_text(json.dumps({"fields": labels}))
    main(["index", str(tmp_path), "--workers", "1"])
    assert run("fp16", WHOLE, f"data.urls=[{tmp_path}]").source.num_samples == len(FILES)


def test_the_check_reads_no_weights_for_a_dry_run_or_for_live_fields(
    run: Callable[..., Job], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **settings: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("regscale.autoencoders._frozen.load", refuse)
    monkeypatch.setattr("regscale.representations.dinov2.load", refuse)
    run("pictures", LIVE)
    command.main([str(CONFIG), "--dry-run", *sizes(root), *data(root / "fp16", WHOLE)])
    with pytest.raises(AssertionError, match="weights were read"):
        run("fp16", HALF)


def test_fields_without_a_hash_are_taken_on_trust_or_by_the_model_s_name(
    run: Callable[..., Job], root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`convert` can only say which published model its posteriors are from."""
    for shard in (root / "fp16").glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    label = {"fields": {"moments.npy": {"identity": "published mse"}}}
    (tmp_path / "shards.json").write_text(json.dumps(label))
    main(["index", str(tmp_path), "--workers", "1"])
    run("fp16", WHOLE, f"data.urls=[{tmp_path}]")
    told = "data: '%s' has no hash of its encoder, %s; taken on trust"
    assert told % ("moments", "only 'published mse'") in caplog.messages
    assert told % ("dinov2", "nor a name") in caplog.messages
    with pytest.raises(RegscaleError, match="stored: published mse; current: sd_vae-"):
        run("fp16", WHOLE, f"data.urls=[{tmp_path}]", f"autoencoder.model={root / 'ema'}")


RUNS = {256: [f"imagenet_sit_{size}" for size in ("s", "b", "l", "xl")]}
RUNS[512] = ["imagenet512_sit_xl"]


@pytest.mark.parametrize("pixels", RUNS)
def test_the_part_for_shards_goes_over_every_run_of_its_size(tmp_path: Path, pixels: int) -> None:
    for name in RUNS[pixels]:
        parts = [CONFIGS / f"{name}.yaml", CONFIGS / f"parts/imagenet{pixels}_shards.yaml"]
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"defaults: [{', '.join(map(str, parts))}]\nname: {name}_shards\n")
        config = load(RunConfig, path)
        assert (kind_of(config.data), config.data.image_size) == ("shards", pixels)
        assert config.data.fields == ("moments", "images", "labels")
        command.main([str(path), "--dry-run"])
