"""Reference files in the layout of ADM, read and written; and whole sets of figures from them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from regscale import chance
from regscale.errors import RegscaleError
from regscale.evaluation._references import read_reference, write_reference
from regscale.evaluation.metrics import (
    Collected,
    Gaussian,
    HeldOut,
    Moments,
    accuracy_figure,
    clip_score,
    clip_score_figure,
    cmmd_figure,
    frechet_figure,
    inception_figures,
    joined,
    relative_figure,
)
from tests.evaluation.test_metrics import features

PICTURES = torch.randint(0, 256, (5, 3, 8, 6), generator=torch.manual_seed(0)).to(torch.uint8)
POOL, SPATIAL = (Moments.of(features(60, width, seed=1)).gaussian() for width in (2048, 2023))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reference.npz"
    write_reference(
        path, pool=POOL, spatial=SPATIAL, images=PICTURES.split(2), image_shape=(5, 8, 6, 3)
    )
    return path


def test_a_reference_comes_back_as_it_was_written(file: Path) -> None:
    read = read_reference(file)
    assert read.pool is not None
    assert read.spatial is not None
    assert torch.equal(read.pool.mean, POOL.mean)
    assert torch.equal(read.pool.covariance, POOL.covariance)
    assert torch.equal(read.spatial.covariance, SPATIAL.covariance)
    assert read.image_shape == (5, 8, 6, 3)
    assert torch.equal(torch.cat(list(read.images(batch_size=3))), PICTURES)


def test_the_published_evaluator_can_read_what_is_written(file: Path) -> None:
    """Its reader streams `arr_0.npy` out of the zip after a header of version 1 or 2 in C order,
    in float32 from 0 to 255, and takes the four statistics by their names from `numpy.load`."""
    with zipfile.ZipFile(file) as archive:
        assert "arr_0.npy" in archive.namelist()
        with archive.open("arr_0.npy") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
            data = member.read()
    assert (shape, fortran_order, dtype) == ((5, 8, 6, 3), False, np.uint8)
    assert data == PICTURES.permute(0, 2, 3, 1).numpy().tobytes()
    with np.load(file) as arrays:
        assert set(arrays) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}
        assert (arrays["mu"].shape, arrays["sigma"].shape) == ((2048,), (2048, 2048))
        assert (arrays["mu_s"].shape, arrays["sigma_s"].shape) == ((2023,), (2023, 2023))
        assert {arrays[name].dtype for name in ("mu", "sigma", "mu_s", "sigma_s")} == {
            np.dtype(np.float64)
        }


def test_files_that_numpy_saved_are_read(tmp_path: Path) -> None:
    path = tmp_path / "adm.npz"
    pictures = PICTURES.permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=pictures, mu=np.zeros(3, np.float32), sigma=np.eye(3))
    read = read_reference(path)
    assert read.pool is not None
    assert read.pool.mean.dtype == torch.float64
    assert read.spatial is None
    assert torch.equal(torch.cat(list(read.images())), PICTURES)
    np.savez_compressed(path, mu=np.zeros(3), sigma=np.eye(3))
    assert read_reference(path).image_shape is None


def test_a_file_of_samples_alone_is_one_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    write_reference(path, images=[PICTURES], image_shape=(5, 8, 6, 3))
    assert read_reference(path).pool is None
    assert np.array_equal(np.load(path)["arr_0"], PICTURES.permute(0, 2, 3, 1).numpy())


def test_the_identity_changes_with_a_byte(file: Path) -> None:
    before = read_reference(file).identity
    assert before.startswith("reference.npz-")
    assert read_reference(file).identity == before
    write_reference(file, pool=POOL)
    assert read_reference(file).identity != before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu and sigma of shapes that do not fit"),
        ({"mu": np.zeros(3)}, r"cannot be read.*sigma"),
        ({"labels": np.zeros(3)}, r"neither statistics nor pictures; found \['labels'\]"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"arr_0 that is not uint8 \(N, SH, SW, 3\)"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, r"not uint8 .* found float64"),
    ],
)
def test_what_is_no_reference_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    with pytest.raises(RegscaleError, match=message):
        read_reference(path)


def test_no_file_and_no_zip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RegscaleError, match="No such file"):
        read_reference(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("mu")
    with pytest.raises(RegscaleError, match="not a zip file"):
        read_reference(tmp_path / "text.npz")


def test_fewer_pictures_than_announced_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with pytest.raises(AssertionError, match="6 pictures were announced and 5 came"):
        write_reference(path, images=[PICTURES], image_shape=(6, 8, 6, 3))
    assert not list(tmp_path.iterdir())


def collected(count: int, *, seed: int, shift: float = 0.0) -> Collected:
    pool, spatial, logits = (
        features(count, width, seed=seed, shift=shift) for width in (32, 24, 16)
    )
    return Collected(evaluator="inception-ab", features=pool, spatial=spatial, logits=logits)


def gaussian(values: Tensor | None) -> Gaussian:
    assert values is not None
    return Moments.of(values).gaussian()


def test_figures_of_inception_carry_provenance_and_noise_floors() -> None:
    made, real = collected(300, seed=1, shift=3.0), collected(200, seed=2)
    statistics = {"pool": gaussian(real.features), "spatial": gaussian(real.spatial)}
    figures = inception_figures(made, reference="adm-cd", **statistics, real=real)
    named = {figure.name: figure for figure in figures}
    assert list(named) == ["FID", "sFID", "IS", "precision", "recall", "KID"]
    for name, figure in named.items():
        assert (figure.num_samples, figure.evaluator) == (300, "inception-ab")
        assert figure.reference == (None if name == "IS" else "adm-cd")
        assert figure.noise_floor is not None
        assert figure.noise_samples == 100
    assert named["KID"].value > abs(named["KID"].noise_floor or 0)
    alone = inception_figures(made, reference="adm-cd", **statistics)
    assert [figure.name for figure in alone] == ["FID", "sFID", "IS"]
    assert all(figure.noise_floor is None for figure in alone)
    assert {figure.no_floor for figure in alone} == {"the reference holds no pictures"}
    assert [f.value for f in alone] == [f.value for f in figures[:3]]


def test_figures_of_embeddings_name_their_model() -> None:
    made, real = collected(60, seed=1), collected(80, seed=2)
    assert cmmd_figure(made, real, reference="r").noise_samples == 40
    figure = frechet_figure("FD-DINOv2", made, reference="r", against=gaussian(real.features))
    assert figure.name == "FD-DINOv2"
    score = clip_score_figure(made, made.features, model="openai/clip-vit-base-patch32")
    assert score.name == "CLIPScore (openai/clip-vit-base-patch32)"
    assert score.value == pytest.approx(100)
    assert (score.noise_floor, score.no_floor) == (None, "no real pictures of the captions")


def test_clip_scores_of_real_pairs_in_halves_are_the_noise_floor_of_clip_score() -> None:
    made, real, texts = (collected(60, seed=seed) for seed in (1, 2, 3))
    figure = clip_score_figure(made, texts.features, model="m", real=real)
    order = chance.permutation(60, seed=0, purpose="evaluation/noise_floor")
    halves = [torch.from_numpy(part) for part in (order[:30], order[30:])]
    a, b = (clip_score(real.features[half], texts.features[half]).mean for half in halves)
    assert figure.noise_floor == pytest.approx(abs(a - b), rel=1e-12)
    assert figure.noise_floor > 0
    assert (figure.noise_samples, figure.no_floor) == (30, "")


def test_an_accuracy_has_a_floor_of_right_and_wrong_on_real_pictures() -> None:
    made, verdicts = collected(4, seed=1), torch.tensor([True, True, False, True])
    real = torch.arange(40) % 3 > 0
    figure = accuracy_figure("label accuracy", verdicts, made, real_right=real)
    order = torch.from_numpy(chance.permutation(40, seed=0, purpose="evaluation/noise_floor"))
    a, b = (float(real[half].double().mean()) for half in (order[:20], order[20:]))
    assert (figure.value, figure.noise_samples) == (0.75, 20)
    assert figure.noise_floor == pytest.approx(abs(a - b), rel=1e-12)


def test_statistics_of_another_extractor_are_refused() -> None:
    with pytest.raises(RegscaleError, match=r"FID: reference r: .* 32 wide; found a mean of 2048"):
        inception_figures(collected(60, seed=1), reference="r", pool=POOL)


def test_a_relative_figure_counts_each_encoder_in_units_of_held_out_data() -> None:
    made, held_out, real = (collected(n, seed=n, shift=s) for n, s in ((60, 2.0), (70, 0), (80, 0)))
    figures = [
        frechet_figure("FD", part, reference="r", against=gaussian(real.features))
        for part in (made, held_out)
    ]
    far = HeldOut("h", made.evaluator, figures[1].value)
    relative = relative_figure("FDr^1", figures[:1], [far])
    assert relative.value == pytest.approx(figures[0].value / figures[1].value)
    assert (relative.name, relative.noise_floor) == ("FDr^1", 1.0)
    assert (relative.num_samples, relative.reference) == (60, "r; held out h")


def test_sets_of_two_extractors_do_not_join() -> None:
    other = Collected(evaluator="inception-cd", features=torch.zeros(2, 32))
    with pytest.raises(AssertionError, match="one extractor"):
        joined([collected(4, seed=1), other])
    whole = collected(9, seed=1)
    parts = [
        Collected(evaluator=whole.evaluator, features=part) for part in whole.features.split(4)
    ]
    assert torch.equal(joined(parts).features, whole.features)
    assert joined(parts).logits is None


PEAK = """
import resource, sys, torch
from regscale.evaluation.metrics import precision_recall
real, made, width, block = map(int, sys.argv[1:])
torch.set_num_threads(2)
sets = [torch.rand(count, width, generator=torch.manual_seed(count)) for count in (real, made)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(precision_recall(*sets, block=block))
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(*sizes: int) -> tuple[int, int]:
    """Resident bytes of a process of its own: before, and at most."""
    command = [sys.executable, "-c", PEAK, *map(str, sizes)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, most = out.splitlines()[-1].split()
    return int(before), int(most)


def test_memory_of_precision_and_recall_is_bounded_by_the_block() -> None:
    before, most = peak(1500, 6000, 64, 512)
    # all distances of the generated set would be 288 MB; a block's three are 6 MB
    assert most - before < 60e6


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_precision_and_recall_of_a_whole_imagenet_evaluation_stay_below_4_gb() -> None:
    _, most = peak(10_000, 50_000, 2048, 2048)
    assert most < 4e9
