"""Encoding of shards: the fields, their batches, restarts, processes, and what is refused."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from regscale.config import load
from regscale.data import _fields, index_path, shards
from regscale.errors import RegscaleError
from regscale.prepare import _encoders, encode
from regscale.prepare.__main__ import main
from regscale.prepare._process import this_process
from regscale.recipe import RunConfig
from regscale.types import Batch
from tests.autoencoders.test_sd_vae import save_tiny
from tests.data.packing import index, npy, overwrite, pack, picture
from tests.data.test_index import members

COUNTS = (7, 5, 3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"autoencoder={{kind: sd_vae, model: {save_tiny(tmp_path_factory.mktemp('v'), 0)}, \
decoder: null, factor: 2}}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    number = 0
    for place, count in enumerate(COUNTS):
        samples = [
            (f"a/s{i:03d}", {"png": picture(i, size=8 + i), "cls": str(i % 10).encode()})
            for i in range(number, number + count)
        ]
        pack(tmp_path / "plain" / f"{place}.tar", samples)
        number += count
    return tmp_path / "plain"


def run(tiny_file: Path, folder: Path, out: Path, *words: str) -> Path:
    main(["encode", str(tiny_file), str(folder), "--out", str(out), "--batch-size", "3", *words])
    return out


def everything(folder: Path, *fields: str, flip: bool = False) -> Batch:
    names = fields or ("images", "labels", "moments", "vit")
    source = shards.build(shards.Config(urls=(str(folder),), fields=names, image_size=8, flip=flip))
    assert source.num_samples == sum(COUNTS)
    return source.read(range(sum(COUNTS)), range(sum(COUNTS)))


def test_shards_gain_the_fields_of_the_run_s_encoders(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = run(tiny_file, folder, tmp_path / "out", "--dtype", "fp32", "--patches", vae)
    batch = everything(out, "images", "labels", "moments", "vit", "vit.patches")
    assert batch.labels is not None
    assert batch.labels.tolist() == [i % 10 for i in range(sum(COUNTS))]
    encoders = made(tiny_file, vae)
    assert batch.images is not None
    assert batch.moments is not None
    assert batch.features is not None
    live = encoders.autoencoder.encode(batch.images)  # type: ignore[union-attr]
    torch.testing.assert_close(batch.moments, live, rtol=0, atol=1e-5)
    features = encoders.targets["vit"](batch.images)
    torch.testing.assert_close(tuple(batch.features["vit"]), tuple(features), rtol=0, atol=1e-5)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(out.glob(".*"))


def made(tiny_file: Path, *words: str, **settings: object) -> _encoders.Encoders:
    config = load(RunConfig, tiny_file, words)
    options = {"dtype": "fp16", "flip": False, "patches": False, "device": CPU, **settings}
    return _encoders.build(config, None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_models_are_called_once_for_each_batch_whatever_its_size(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, batch_size: int
) -> None:
    """Samples of a shard share batches: ceil(n / batch_size) calls; numbers equal batch 1's."""
    outs = {}
    for size in (1, batch_size):
        encoders, calls = made(tiny_file, vae, dtype="fp32"), []
        plain = encoders.autoencoder.encode  # type: ignore[union-attr]
        encoders.autoencoder.encode = (  # type: ignore[union-attr, method-assign]
            lambda images, plain=plain, calls=calls: calls.append(len(images)) or plain(images)
        )
        outs[size] = tmp_path / f"{size}"
        outs[size].mkdir(exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            encode.encode_shard(
                folder / "0.tar",
                outs[size] / "0.tar",
                encoders,
                identities=encoders.identities,
                batch_size=size,
                pool=pool,
                progress=lambda count: None,
            )
        assert len(calls) == -(-COUNTS[0] // size)
        assert sum(calls) == COUNTS[0]
    one, many = (arrays(outs[size] / "0.tar") for size in (1, batch_size))
    assert one.keys() == many.keys()
    for name, values in one.items():
        np.testing.assert_allclose(many[name], values, rtol=0, atol=1e-5)


def arrays(shard: Path) -> dict[str, np.ndarray]:
    data = shard.read_bytes()
    return {
        m.name: _fields.array(memoryview(data[m.start : m.start + m.size]))
        for m in members(shard)
        if m.name.endswith(".npy")
    }


def test_fp16_moments_differ_by_the_rounding_of_fp16(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str
) -> None:
    """11 bits of significand: at most 2^-11 of a value, and half of 2^-24 where fp16 is sparse."""
    full = run(tiny_file, folder, tmp_path / "full", "--dtype", "fp32", vae)
    half = run(tiny_file, folder, tmp_path / "half", vae)
    largest = 0.0
    for place in range(len(COUNTS)):
        exact, rounded = arrays(full / f"{place}.tar"), arrays(half / f"{place}.tar")
        for name, values in exact.items():
            assert (values.dtype, rounded[name].dtype) == (np.float32, np.float16)
            error = np.abs(rounded[name].astype(np.float64) - values)
            assert (error <= np.maximum(2.0**-11 * np.abs(values), 2.0**-25)).all()
            normal = np.abs(values) >= 2.0**-14
            largest = max(largest, float((error[normal] / np.abs(values[normal])).max()))
    assert 2.0**-13 < largest <= 2.0**-11
    tiny = torch.tensor([2.0**-15 * 1.001, 3e-7])
    assert float((tiny.half().float() - tiny).abs().max()) <= 2.0**-25


def test_numbers_beyond_fp16_are_refused(tiny_file: Path, vae: str) -> None:
    encoders = made(tiny_file, vae)
    with pytest.raises(RegscaleError, match=r"'x\.npy'.*fp16 cannot; found 70000.*--dtype fp32"):
        encoders._rounded("x.npy", torch.tensor([1.0, 70000.0]))


def test_a_flip_stores_the_mirror_image_s_row(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str
) -> None:
    out = run(tiny_file, folder, tmp_path / "out", "--flip", "--dtype", "fp32", "--patches", vae)
    batch = everything(out, "images", "moments", "vit", "vit.patches", flip=True)
    plain = everything(out, "images")
    assert batch.images is not None
    assert plain.images is not None
    turned = (batch.images != plain.images).flatten(1).any(1)
    assert 0 < int(turned.sum()) < sum(COUNTS)
    encoders = made(tiny_file, vae)
    live = encoders.autoencoder.encode(batch.images)  # type: ignore[union-attr]
    assert batch.moments is not None
    assert batch.features is not None
    torch.testing.assert_close(batch.moments, live, rtol=0, atol=1e-5)
    features = encoders.targets["vit"](batch.images)
    torch.testing.assert_close(tuple(batch.features["vit"]), tuple(features), rtol=0, atol=1e-5)


def test_the_growth_is_told_first_and_is_what_the_disk_takes(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, caplog: pytest.LogCaptureFixture
) -> None:
    index(folder)
    with caplog.at_level(logging.INFO):
        out = run(tiny_file, folder, tmp_path / "out", "--patches", vae)
    first, second = caplog.messages[:2]
    sizes = made(tiny_file, vae, patches=True).bytes_a_sample
    assert set(sizes) == {"moments.npy", "vit.npy", "vit.patches.npy"}
    assert first.startswith(f"each sample grows by {sum(sizes.values()):,} bytes: moments.npy ")
    assert second.startswith("15 samples: ")
    assert second.endswith("GB are free")
    for place, count in enumerate(COUNTS):
        grown = members(out / f"{place}.tar")[-1], members(folder / f"{place}.tar")[-1]
        ends = [m.start + -(-m.size // 512) * 512 for m in grown]
        assert ends[0] - ends[1] == count * sum(sizes.values())


def test_a_killed_command_goes_on_with_what_is_left(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_file, folder, tmp_path / "whole", vae)
    out, real, seen = tmp_path / "out", encode.encode_shard, []

    def stopped(shard: Path, *args: object, **settings: object) -> None:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(shard.name)
        real(shard, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "encode_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_file, folder, out, vae)
    assert not (out / "shards.index").exists()
    index_path(out / "0.tar").unlink()  # as if killed between a shard and its index
    monkeypatch.setattr(
        encode, "encode_shard", lambda s, *a, **k: (seen.append(s.name), real(s, *a, **k))
    )
    run(tiny_file, folder, out, vae)
    assert seen == ["0.tar", "0.tar", "1.tar", "2.tar"]
    for path in whole.glob("*.tar"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    run(tiny_file, folder, out, vae)
    assert len(seen) == 4


def test_a_shard_that_was_packed_again_is_encoded_again(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Other pictures under the name of before; so is one of which nobody noted its source."""
    out = run(tiny_file, folder, tmp_path / "out", vae)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    samples = [(f"a/s{i:03d}", {"png": picture(90 + i), "cls": b"1"}) for i in range(COUNTS[2])]
    pack(folder / "2.tar", samples)
    (out / "prepare/1.tar.json").unlink()
    (folder / "0.tar").touch()  # is not another file for it
    with caplog.at_level(logging.INFO):
        run(tiny_file, folder, out, vae)
    kept = {path.name for path, time in before.items() if path.stat().st_mtime_ns == time}
    assert kept == {"0.tar"}
    told = f"{out}: 2 shards may be of other pictures and are encoded again, the first 1.tar"
    assert told in caplog.messages
    fresh = run(tiny_file, folder, tmp_path / "fresh", vae)
    for path in fresh.glob("*.tar"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert (out / "shards.index").read_bytes() == (fresh / "shards.index").read_bytes()


def test_another_picture_in_a_shard_s_middle_is_noticed_where_shards_have_an_index(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str
) -> None:
    """Size and both ends stay."""
    index(folder)
    out = run(tiny_file, folder, tmp_path / "out", vae)
    label = members(folder / "0.tar")[3]
    for change in (b"1", b"9"):
        before = (out / "0.tar").stat().st_mtime_ns
        overwrite(folder / "0.tar", label.start, change)
        index(folder)
        run(tiny_file, folder, out, vae)
        assert ((out / "0.tar").stat().st_mtime_ns == before) == (change == b"1")
    labels = everything(out, "labels").labels
    assert labels is not None
    assert labels[1] == 9


def test_an_index_that_comes_later_is_no_reason_to_encode_again(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str
) -> None:
    out = run(tiny_file, folder, tmp_path / "out", vae)
    before = (out / "0.tar").stat().st_mtime_ns
    index(folder)
    run(tiny_file, folder, out, vae)
    assert (out / "0.tar").stat().st_mtime_ns == before


def test_processes_share_the_shards_and_the_last_one_joins_them(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = run(tiny_file, folder, tmp_path / "whole", vae), tmp_path / "out"
    for rank, there in ((1, ["1.tar"]), (0, ["0.tar", "1.tar", "2.tar"])):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        run(tiny_file, folder, out, vae)
        assert sorted(path.name for path in out.glob("*.tar")) == there
        assert (out / "shards.index").exists() == (rank == 0)
    assert (out / "shards.index").read_bytes()[-200:] == (whole / "shards.index").read_bytes()[
        -200:
    ]


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}
STEP = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (0, 1, 0)), (TORCHRUN, (3, 8, 1)), (BATCH, (0, 1, 0)), (STEP, (5, 16, 2))],
)
def test_a_process_knows_its_part_from_torchrun_or_a_slurm_step(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, ...]
) -> None:
    """A batch script has the job's number of tasks too, and is one process all the same."""
    monkeypatch.setattr("os.environ", environment)
    assert this_process() == expected


def test_a_rank_beyond_the_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"RANK": "8", "WORLD_SIZE": "8"})
    with pytest.raises(RegscaleError, match=r"RANK and WORLD_SIZE: .* found 8 and 8"):
        this_process()


def test_what_lies_beside_the_shards_comes_along(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str
) -> None:
    """Names of the classes, notes and the summary; labels in it outlive another indexing."""
    (folder / "classes.txt").write_text("n01\nn02\n")
    (folder / "LICENSE.md").write_text("as you like")
    (folder / "shards.json").write_text(json.dumps({"fields": {}, "samples": 15, "bytes": 1}))
    (folder / "prepare").mkdir()
    out = run(tiny_file, folder, tmp_path / "out", vae)
    assert (out / "classes.txt").read_text() == "n01\nn02\n"
    assert (out / "LICENSE.md").read_text() == "as you like"
    about = json.loads((out / "shards.json").read_text())
    assert about["samples"] == 15
    assert about["bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))
    before = identities(out)
    for path in out.glob("*.index"):
        path.unlink()
    main(["index", str(out), "--workers", "1"])
    assert identities(out) == before
    assert set(before) == {"moments", "vit"}


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_summary_that_says_nothing_is_refused_before_the_work(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, text: str
) -> None:
    (folder / "shards.json").write_text(text)
    with pytest.raises(RegscaleError, match=r"shards\.json: says what .* found no JSON object"):
        run(tiny_file, folder, tmp_path / "out", vae)
    assert not (tmp_path / "out").exists()


def identities(out: Path) -> dict[str, str]:
    data = shards.build(shards.Config(urls=(str(out),), fields=("moments", "vit")))
    return dict(data.identities)


def test_fields_of_before_keep_their_identity_and_others_are_replaced(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str
) -> None:
    first = run(tiny_file, folder, tmp_path / "first", vae)
    other = f"autoencoder.model={save_tiny(tmp_path / 'other', 1)}"
    both = run(tiny_file, first, tmp_path / "both", "--fields", "moments", vae, other)
    was, now = identities(first), identities(both)
    assert was["vit"] == now["vit"]
    assert was["moments"] != now["moments"]
    assert members(both / "0.tar")[-1].name == "a/s006.moments.npy"
    settings = json.loads((both / "encode.json").read_text())
    assert settings["fields"] == {"moments.npy": now["moments"]}


REFUSALS = [
    (["--flip"], "holds shards that were encoded with another flip; found False, asked for True"),
    (["--dtype", "fp32"], "encoded with another dtype; found fp16, asked for fp32"),
    (["--fields", "vit"], "encoded with another fields"),
    (["--fields", "vitt"], "names the moments and targets of the config; found 'vitt'. Did you"),
    (["--fields", "moments", "--patches"], "--patches: needs a target with patches"),
    (["--batch-size", "0"], "are positive; found 0, 4"),
]


@pytest.mark.parametrize(("words", "message"), REFUSALS)
def test_what_cannot_be_is_told(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, words: list[str], message: str
) -> None:
    out = run(tiny_file, folder, tmp_path / "out", vae)
    with pytest.raises(RegscaleError) as caught:
        run(tiny_file, folder, out, vae, *words)
    assert message in str(caught.value)


def test_shards_are_never_changed_in_place(tiny_file: Path, folder: Path, vae: str) -> None:
    with pytest.raises(RegscaleError, match="is another folder than that of the shards"):
        run(tiny_file, folder, folder, vae)
    pack(folder.parent / "other" / "9.tar", [("k", {"cls": b"0"})])
    with pytest.raises(RegscaleError, match=r"holds shards, but no encode\.json"):
        run(tiny_file, folder, folder.parent / "other", vae)


BAD = {
    "cut": r"0\.tar: is damaged; found byte [\d,]+, sample a/s006: is cut",
    "no picture": r"found byte 0, sample k: has no picture, only cls",
    "no image": r"sample k: has no JPEG, PNG or WebP picture",
    "twice": r"sample k: is there twice",
    "header": r"is damaged; found byte 512",
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_shard_is_named_and_leaves_nothing(
    tiny_file: Path, folder: Path, tmp_path: Path, vae: str, what: str
) -> None:
    shard, good = folder / "0.tar", {"png": picture(0), "cls": b"0"}
    if what == "cut":
        shard.write_bytes(shard.read_bytes()[: members(shard)[-2].start + 40])
    elif what == "no picture":
        pack(shard, [("k", {"cls": b"0"})])
    elif what == "no image":
        pack(shard, [("k", {"png": npy(np.zeros(3)), "cls": b"0"})])
    elif what == "twice":
        pack(shard, [("k", good), ("l", good), ("k", good)])
    else:
        pack(shard, [("k", {"cls": b""}), ("l", good)])
        overwrite(shard, 512, b"?" * 512)
    with pytest.raises(RegscaleError, match=BAD[what]):
        run(tiny_file, folder, tmp_path / "out", vae)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["encode.json"]
