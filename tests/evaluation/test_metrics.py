"""Metrics against formulas written down a second time in NumPy and SciPy, and against libraries.

The features are seeded, not negative and correlated, as Inception's are.
"""

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from regscale.cluster import Cluster
from regscale.errors import RegscaleError
from regscale.evaluation.metrics import (
    Figure,
    Gaussian,
    Moments,
    clip_score,
    cmmd,
    frechet_distance,
    frechet_distance_of,
    inception_score,
    kid,
    noise_floor,
    precision_recall,
    relative_distance,
)
from tests.processes import Pool

SIX_DIGITS = 1e-6  # relative; everything below is float64, so there is room to spare


def features(count: int, width: int, *, seed: int, rank: int = 24, shift: float = 0.0) -> Tensor:
    """Rectified, of a few directions and a little noise."""
    directions = np.random.RandomState(width).standard_normal((rank, width))
    chance = np.random.RandomState(seed)
    hidden = chance.standard_normal((count, rank)) @ directions + shift
    hidden += 0.3 * chance.standard_normal((count, width))
    return torch.from_numpy(np.maximum(hidden, 0).astype(np.float32))


REAL, MADE = features(900, 96, seed=1), features(1100, 96, seed=2, shift=0.2)


def scipy_distance(a: Tensor, b: Tensor) -> float:
    """ADM's `FIDStatistics.frechet_distance`, from the definition."""
    x, y = a.double().numpy(), b.double().numpy()
    mean_x, mean_y, cov_x, cov_y = x.mean(0), y.mean(0), np.cov(x.T), np.cov(y.T)
    cross = np.trace(scipy.linalg.sqrtm(cov_x @ cov_y)).real
    return float(((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance_of(Moments.of(a).gaussian(), Moments.of(b).gaussian())


def test_the_frechet_distance_is_that_of_a_root_of_the_product_of_covariances() -> None:
    assert distance(REAL, MADE) == pytest.approx(scipy_distance(REAL, MADE), rel=SIX_DIGITS)


def test_the_frechet_distance_of_gaussians_on_the_same_axes_is_known_in_closed_form() -> None:
    a, b = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 4.0, 0.0])  # variances; one is none
    apart = torch.tensor([1.0, 0.0, 2.0])
    expected = 5 + (1 - 3) ** 2
    assert frechet_distance(apart, a.diag(), torch.zeros(3), b.diag()) == pytest.approx(expected)


def test_the_frechet_distance_takes_fewer_samples_than_the_features_are_wide() -> None:
    few = features(40, 96, seed=3)
    # C_a C_b has 57 zero eigenvalues; the trace of its root is the nuclear norm of the product of
    # the two centred feature matrices, a formula without covariances
    x, y = (v.double().numpy() - v.double().numpy().mean(0) for v in (few, MADE))
    cross = np.linalg.norm(x @ y.T, "nuc") / np.sqrt((len(x) - 1) * (len(y) - 1))
    means = few.double().mean(0) - MADE.double().mean(0)
    expected = float(means @ means) + np.cov(x.T).trace() + np.cov(y.T).trace() - 2 * cross
    assert distance(few, MADE) == pytest.approx(expected, rel=SIX_DIGITS)


def test_a_set_is_at_no_distance_from_itself() -> None:
    traces = float(Moments.of(REAL).gaussian().covariance.trace())
    assert abs(distance(REAL, REAL)) < 1e-10 * traces


@pytest.mark.slow
def test_fid_and_sfid_agree_with_scipy_at_their_own_widths() -> None:
    for width in (2048, 2023):
        real, made = (features(3000, width, seed=s, rank=200, shift=0.1 * s) for s in (1, 2))
        assert distance(real, made) == pytest.approx(scipy_distance(real, made), rel=SIX_DIGITS)


def test_the_frechet_distance_is_that_of_torch_fidelity_and_torchmetrics() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_fid", exc_type=ImportError)
    metrics = pytest.importorskip("torchmetrics.image.fid", exc_type=ImportError)
    a, b = (fidelity.fid_features_to_statistics(f.double()) for f in (MADE, REAL))
    theirs = fidelity.fid_statistics_to_metric(a, b, verbose=False)
    assert distance(MADE, REAL) == pytest.approx(
        theirs["frechet_inception_distance"], rel=SIX_DIGITS
    )
    x, y = Moments.of(MADE).gaussian(), Moments.of(REAL).gaussian()
    other = metrics._compute_fid(x.mean, x.covariance, y.mean, y.covariance)
    assert distance(MADE, REAL) == pytest.approx(float(other), rel=SIX_DIGITS)


def test_moments_of_a_stream_are_those_of_the_whole() -> None:
    values = MADE.double() + 1e6  # sums of squares would lose twelve digits here
    stream = Moments.empty(96)
    for batch in values.split([1, 500, 0, 599]):
        stream = stream.add(batch)
    assert stream.count == 1100
    # the values themselves were rounded to 1e-10 when 1e6 was added
    torch.testing.assert_close(stream.gaussian().mean, values.mean(0), rtol=1e-14, atol=0)
    expected = torch.from_numpy(np.cov(MADE.double().numpy().T))
    torch.testing.assert_close(stream.gaussian().covariance, expected, rtol=1e-7, atol=1e-8)


def test_parts_merge_to_the_whole_in_any_order() -> None:
    a, b, c = (Moments.of(part) for part in MADE.split([300, 7, 793]))
    for merged in (
        a.merge(b).merge(c),
        c.merge(a).merge(b),
        Moments.empty(96).merge(c.merge(b).merge(a)),
    ):
        torch.testing.assert_close(merged.scatter, Moments.of(MADE).scatter)
        torch.testing.assert_close(merged.mean, Moments.of(MADE).mean)


def _of_rank(cluster: Cluster) -> tuple[Moments, bool]:
    parts = MADE.split([200, 900])
    own = Moments.of(parts[cluster.rank]) if cluster.rank < 2 else Moments.empty(96)
    kept = own.scatter.clone()
    return own.over_ranks(cluster), torch.equal(kept, own.scatter)


@pytest.mark.distributed
def test_moments_over_processes_are_those_of_one(pool: Pool) -> None:
    results = pool.run(3, _of_rank)  # the third one had no samples
    whole = Moments.of(MADE)
    for merged, kept in results:
        assert kept
        assert merged.count == 1100
        torch.testing.assert_close(merged.mean, whole.mean)
        torch.testing.assert_close(merged.scatter, whole.scatter)
        assert torch.equal(merged.scatter, results[0][0].scatter)


def test_the_inception_score_of_logits_far_apart_is_finite() -> None:
    """Two classes, each sure: 2 whatever the gap; another class underflows in every sample."""
    logits = torch.tensor([[0.0, -2000.0, -2000.0], [-2000.0, 0.0, -2000.0]]).repeat(5, 1)
    assert inception_score(logits, splits=1).mean == pytest.approx(2.0)


def test_the_inception_score_is_the_mean_of_the_exponents_over_splits() -> None:
    logits = features(1003, 40, seed=4) - 3
    p = scipy.special.softmax(logits.double().numpy(), axis=1)
    parts = [p[i * 1003 // 10 : (i + 1) * 1003 // 10] for i in range(10)]
    scores = [
        np.exp(scipy.stats.entropy(q, q.mean(0, keepdims=True), axis=1).mean()) for q in parts
    ]
    score = inception_score(logits)
    assert score.mean == pytest.approx(np.mean(scores), rel=SIX_DIGITS)
    assert score.std == pytest.approx(np.std(scores), rel=SIX_DIGITS)
    log_p = torch.from_numpy(np.log(p))
    assert inception_score(log_p).mean == pytest.approx(score.mean, rel=SIX_DIGITS)


def test_the_inception_score_is_one_for_no_difference_and_the_classes_for_certainty() -> None:
    assert inception_score(torch.zeros(50, 7)).mean == pytest.approx(1)
    certain = 1e4 * torch.eye(7).repeat(20, 1)  # other classes' probabilities are zeros
    assert inception_score(certain, splits=2).mean == pytest.approx(7)


def test_the_inception_score_is_that_of_torch_fidelity_and_torchmetrics() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_isc", exc_type=ImportError)
    torchmetrics = pytest.importorskip("torchmetrics.image.inception", exc_type=ImportError)
    logits = features(1003, 40, seed=4) - 3
    theirs = fidelity.isc_features_to_metric(logits, 10, False, 0)
    assert inception_score(logits) == pytest.approx(tuple(theirs.values()), rel=SIX_DIGITS)
    other = torchmetrics.InceptionScore(feature=nn.Identity(), splits=1)  # it shuffles
    other.update(logits.double())
    assert inception_score(logits, splits=1).mean == pytest.approx(
        float(other.compute()[0]), rel=SIX_DIGITS
    )


def numpy_precision_recall(real: Tensor, made: Tensor, k: int) -> tuple[float, float]:
    """Equations 1 and 2 with every difference taken, one by one."""
    x, y = real.double().numpy(), made.double().numpy()

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.stack([np.sqrt(((b - row) ** 2).sum(1)) for row in a])

    def radii(a: np.ndarray) -> np.ndarray:
        return np.sort(distances(a, a), axis=1)[:, k]

    cross = distances(x, y)
    precise = (cross <= radii(x)[:, None]).any(0).mean()
    return float(precise), float((cross <= radii(y)[None]).any(1).mean())


@pytest.mark.parametrize("block", [64, 333, 5000])
def test_precision_and_recall_are_those_of_all_pairs_at_any_block(block: int) -> None:
    expected = numpy_precision_recall(REAL, MADE, 3)
    assert 0.02 < min(expected) < max(expected) < 0.98  # neither is trivial here
    assert precision_recall(REAL, MADE, block=block) == pytest.approx(expected, rel=SIX_DIGITS)


def test_precision_and_recall_are_those_of_torch_fidelity() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_prc", exc_type=ImportError)
    theirs = fidelity.calculate_precision_recall_part(MADE.double(), REAL.double(), 3, 200)
    # each is a mean in fp32 there
    assert precision_recall(REAL, MADE) == pytest.approx(theirs, rel=SIX_DIGITS)


def test_precision_falls_with_garbage_and_recall_with_missing_modes() -> None:
    real = torch.cat([features(200, 8, seed=1), 100 + features(200, 8, seed=2)])
    near = features(400, 8, seed=3)
    garbage = torch.cat([near, 1e4 + torch.randn(400, 8, generator=torch.manual_seed(0)) * 99])
    precise, recalled = precision_recall(real, near)
    assert precise > 0.8
    assert recalled < 0.51
    assert precision_recall(real, garbage).precision == pytest.approx(precise / 2)


def test_duplicates_count_as_neighbours() -> None:
    twice = REAL[:30].repeat(4, 1)  # three copies are the three neighbours: every radius is zero
    assert precision_recall(twice, MADE[:50]).precision == 0
    assert precision_recall(twice, twice) == (1, 1)


def test_kid_is_that_of_torch_fidelity_and_torchmetrics() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_kid", exc_type=ImportError)
    torchmetrics = pytest.importorskip("torchmetrics.image.kid", exc_type=ImportError)
    theirs = fidelity.kid_features_to_metric(
        MADE.double(), REAL.double(), kid_subsets=7, kid_subset_size=200, rng_seed=2020,
        kid_kernel="poly", kid_kernel_poly_degree=3, verbose=False,
    )  # fmt: skip
    ours = kid(REAL, MADE, subset_size=200, num_subsets=7)
    assert ours == pytest.approx(tuple(theirs.values()), rel=SIX_DIGITS)
    a, b = REAL[:300].double(), MADE[:300].double()
    whole = kid(a, b, subset_size=300, num_subsets=1).mean  # one subset of all: no chance in it
    assert whole == pytest.approx(float(torchmetrics.poly_mmd(a, b)), rel=SIX_DIGITS)


def test_kid_is_unbiased_where_the_frechet_distance_is_not() -> None:
    wide = features(2000, 16, seed=5)
    value = kid(wide[:1000], wide[1000:], subset_size=100, num_subsets=200)
    apart = kid(wide[:1000], wide[1000:] * 1.2, subset_size=100, num_subsets=200)
    assert abs(value.mean) < 0.05 * apart.mean  # over 200 subsets its deviation is 1/14 of `std`


def test_cmmd_is_the_biased_estimate_over_all_pairs_of_unit_vectors() -> None:
    x, y = (v.double().numpy() / np.linalg.norm(v.double(), axis=1)[:, None] for v in (REAL, MADE))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 200).mean())

    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    for block in (100, 4096):
        assert cmmd(REAL, MADE, block=block) == pytest.approx(expected, rel=SIX_DIGITS)
    assert cmmd(3 * REAL, MADE) == pytest.approx(expected, rel=SIX_DIGITS)  # lengths do not count
    assert cmmd(REAL, REAL) == pytest.approx(0, abs=1e-9)


def test_clip_score_is_a_hundred_cosines_and_nothing_below_zero() -> None:
    images = torch.tensor([[2.0, 0], [0, 1], [1, 0]])
    texts = torch.tensor([[1.0, 0], [3, 4], [-1, 0]])
    assert clip_score(images, texts).mean == pytest.approx((100 + 80 + 0) / 3)
    assert clip_score(images, texts, scale=2.5).mean == pytest.approx(1.5)


def test_the_noise_floor_is_the_metric_between_two_halves_without_common_samples() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def metric(a: Tensor, b: Tensor) -> float:
        seen.append((a, b))
        return distance(a, b)

    floor = noise_floor(metric, REAL, seed=1)
    a, b = seen[0]
    rows = {tuple(row.tolist()) for row in torch.cat([a, b])}
    assert len(a) == len(b) == 450
    assert rows == {tuple(row.tolist()) for row in REAL}
    assert 0 < distance(a, b) == floor
    assert floor == noise_floor(metric, REAL, seed=1)
    assert floor != noise_floor(metric, REAL, seed=2)


def test_the_relative_distance_is_the_mean_ratio_over_encoders() -> None:
    assert relative_distance({"a": 6.0, "b": 50.0}, {"a": 2.0, "b": 10.0}) == 4
    with pytest.raises(RegscaleError, match="same encoders"):
        relative_distance({"a": 6.0}, {"b": 2.0})
    with pytest.raises(RegscaleError, match="held-out"):
        relative_distance({"a": 6.0}, {"a": 0.0})


def test_a_figure_prints_its_noise_floor_and_where_it_comes_from() -> None:
    figure = Figure(
        name="FID",
        value=3.4012,
        num_samples=50_000,
        evaluator="inception-ab",
        reference="adm.npz-cd",
        noise_floor=1.25,
    )
    assert str(figure) == (
        "FID 3.4012  noise floor 1.25  samples 50,000  evaluator inception-ab  reference adm.npz-cd"
    )
    plain = Figure(name="IS", value=200.0, spread=2.5, num_samples=10, evaluator="inception-ab")
    assert "± 2.5  noise floor not measured" in str(plain)
    assert "reference none" in str(plain)


def test_sets_that_are_too_small_are_refused() -> None:
    few = REAL[:3]
    with pytest.raises(RegscaleError, match=r"Inception Score: needs 10 samples .* found 3"):
        inception_score(few)
    with pytest.raises(RegscaleError, match=r"precision and recall: needs 4 .* found 900 and 3"):
        precision_recall(REAL, few)
    for metric in (lambda a: kid(a, a), Moments.of, lambda a: noise_floor(distance, a)):
        with pytest.raises(RegscaleError, match="needs 2 samples in each set; found 1"):
            value = metric(REAL[:1])
            assert isinstance(value, Moments)
            value.gaussian()


def test_a_gaussian_has_one_width() -> None:
    with pytest.raises(AssertionError, match="as wide as its mean"):
        Gaussian(torch.zeros(3), torch.eye(2))
