"""Many images: the same bytes from any number of processes, at any batch size, after any kill."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from regscale import assemble
from regscale.cluster import Cluster, join
from regscale.errors import RegscaleError
from regscale.sampling import GuidanceConfig, many
from regscale.sampling.many import Wanted
from tests.processes import Pool

NUMBER, UNIT = 22, 8  # the last unit is not full
GUIDANCE = GuidanceConfig(scale=2.0)
WANTED = [Wanted(str(i % 10), 100 + i) for i in range(NUMBER)]


def drawn(
    cluster: Cluster, run: str, folder: str, batch_size: int = 8, number: int = NUMBER
) -> int:
    sampler = assemble.trained(Path(run), device="cpu").sampler
    wanted = WANTED[:number]
    return many.draw(
        sampler,
        wanted,
        Path(folder),
        guidance=GUIDANCE,
        facts={"checkpoint": "tiny"},
        cluster=cluster,
        batch_size=batch_size,
        unit=UNIT,
    )


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    assert drawn(join("cpu"), str(run), str(folder)) == NUMBER
    return contents(folder)


def test_a_set_is_pictures_by_number_and_their_making(whole: dict[str, str]) -> None:
    assert list(whole) == [*(f"{i:06d}.png" for i in range(NUMBER)), "making.json"]
    assert len(set(whole.values())) == NUMBER + 1


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "batch_size"), [(1, 64), (2, 1), (4, 7)])
def test_bytes_do_not_depend_on_processes_and_batch_size(
    run: Path, tmp_path: Path, whole: dict[str, str], pool: Pool, size: int, batch_size: int
) -> None:
    made = pool.run(size, drawn, str(run), str(tmp_path / "out"), batch_size)
    assert made == [NUMBER] * size
    assert contents(tmp_path / "out") == whole


def test_images_do_not_depend_on_how_many_follow(
    run: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    drawn(join("cpu"), str(run), str(tmp_path / "few"), number=3)
    few = contents(tmp_path / "few")
    assert [few[f"{i:06d}.png"] for i in range(3)] == list(whole.values())[:3]


def test_what_is_there_is_not_drawn_again(run: Path, tmp_path: Path, whole: dict[str, str]) -> None:
    drawn(join("cpu"), str(run), str(tmp_path))
    for index in (3, 21):
        many.image_path(tmp_path, index).unlink()
    (tmp_path / ".000003.png.99-aa.tmp").write_bytes(b"half")  # of a killed process
    kept = many.image_path(tmp_path, 4).stat().st_mtime_ns
    assert drawn(join("cpu"), str(run), str(tmp_path)) == 8 + 6
    assert contents(tmp_path) == whole
    assert many.image_path(tmp_path, 4).stat().st_mtime_ns == kept
    assert drawn(join("cpu"), str(run), str(tmp_path)) == 0


SCRIPT = """
import sys
import torch
from regscale.cluster import join
from tests.evaluation.test_many import drawn
torch.set_num_threads(1)
drawn(join("cpu"), sys.argv[1], sys.argv[2], 1)
"""


def test_a_set_that_was_killed_half_way_ends_as_the_same_bytes(
    run: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    folder = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["."])}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, run, folder], env=environment)
    while process.poll() is None and not list(folder.glob("0*.png")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    drawn(join("cpu"), str(run), str(folder))
    assert contents(folder) == whole


def test_a_folder_of_another_making_is_refused(
    loaded: assemble.Loaded, run: Path, tmp_path: Path
) -> None:
    drawn(join("cpu"), str(run), str(tmp_path))
    with pytest.raises(RegscaleError, match="another making: checkpoint is other; found tiny"):
        many.draw(
            loaded.sampler,
            WANTED,
            tmp_path,
            guidance=GUIDANCE,
            facts={"checkpoint": "other"},
            cluster=join("cpu"),
            unit=UNIT,
        )
    with pytest.raises(RegscaleError, match="another making: images is"):
        drawn(join("cpu"), str(run), str(tmp_path), number=5)


def test_a_picture_says_how_it_was_made_and_reads_back(
    loaded: assemble.Loaded, run: Path, tmp_path: Path
) -> None:
    drawn(join("cpu"), str(run), str(tmp_path))
    with Image.open(many.image_path(tmp_path, 13)) as picture:
        text = dict(picture.text)  # type: ignore[attr-defined]
    assert text == {"condition": "3", "seed": "113", "checkpoint": "tiny"}
    unit = many.draw_unit(loaded.sampler, WANTED, 1, guidance=GUIDANCE, unit=UNIT)
    assert torch.equal(many.read_images(tmp_path, range(8, 16)), unit)


def shared(cluster: Cluster, run: str) -> dict[int, list[int]]:
    sampler = assemble.trained(Path(run), device="cpu").sampler
    found = {}
    for held, images in many.shares(sampler, WANTED, guidance=GUIDANCE, cluster=cluster, unit=UNIT):
        found |= {i: image.flatten().tolist() for i, image in zip(held, images, strict=True)}
    return found


@pytest.mark.distributed
def test_images_in_memory_are_those_of_the_files(run: Path, tmp_path: Path, pool: Pool) -> None:
    drawn(join("cpu"), str(run), str(tmp_path))
    files = many.read_images(tmp_path, range(NUMBER)).flatten(1).tolist()
    for size in (1, 2):
        joined = {}
        for part in pool.run(size, shared, str(run)):
            assert not joined.keys() & part.keys()
            joined |= part
        assert [joined[i] for i in range(NUMBER)] == files
