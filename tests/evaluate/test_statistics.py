import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prunekit.evaluate import (
    adjusted_wald_interval,
    bca_interval,
    bootstrap_means,
    mcnemar_exact,
    paired_interval,
)
from prunekit.evaluate.statistics import FEW_CHANGES


def _flips(lost: int, gained: int, n: int) -> np.ndarray:
    return np.array([-1.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained))


def _scipy_bootstrap(differences: np.ndarray, *, resamples: int, confidence: float):
    """SciPy's own paired bootstrap of the mean difference, BCa."""
    dense = np.zeros_like(differences)
    return stats.bootstrap(
        (dense, differences),
        lambda a, b, axis: (b - a).mean(axis=axis),
        paired=True,
        vectorized=True,
        method="BCa",
        n_resamples=resamples,
        confidence_level=confidence,
        rng=np.random.default_rng(3),
    )


SAMPLES = {
    "balanced flips": _flips(30, 25, 360),
    "one-sided flips": _flips(40, 2, 500),
    "small and skewed": np.random.default_rng(5).exponential(size=25) - 0.4,
    "continuous": np.random.default_rng(6).normal(-0.1, 1, size=200),
}


@pytest.mark.parametrize("differences", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_bca_equals_scipys_on_the_same_resamples(differences, confidence):
    oracle = _scipy_bootstrap(differences, resamples=999, confidence=confidence)
    interval = bca_interval(differences, oracle.bootstrap_distribution, confidence=confidence)
    assert interval == pytest.approx(tuple(oracle.confidence_interval), abs=1e-12)


@pytest.mark.parametrize("differences", SAMPLES.values(), ids=SAMPLES)
def test_whole_interval_agrees_with_scipys_paired_bootstrap(differences):
    oracle = _scipy_bootstrap(differences, resamples=9999, confidence=0.95).confidence_interval
    ours = paired_interval(
        differences, confidence=0.95, resamples=10_000, rng=np.random.default_rng(0), reach=5.0
    )
    monte_carlo = 4 * differences.std() / np.sqrt(len(differences)) * 0.03 + 1 / len(differences)
    assert ours.method == "bca_bootstrap"
    assert (ours.low, ours.high) == pytest.approx(tuple(oracle), abs=monte_carlo)


@pytest.mark.parametrize("differences", SAMPLES.values(), ids=SAMPLES)
def test_resampled_means_have_the_closed_form_moments(differences):
    means = bootstrap_means(differences, resamples=20_000, rng=np.random.default_rng(1))
    n = len(differences)
    error = differences.std() / np.sqrt(n)
    assert means.shape == (20_000,)
    assert means.mean() == pytest.approx(differences.mean(), abs=4 * error / np.sqrt(20_000))
    assert means.std() == pytest.approx(error, rel=0.03)


def test_resampling_a_long_metric_in_pieces_has_the_same_moments():
    differences = np.random.default_rng(2).normal(0.5, 1, size=60_000)
    means = bootstrap_means(differences, resamples=150, rng=np.random.default_rng(1))
    error = differences.std() / np.sqrt(len(differences))
    assert means.mean() == pytest.approx(differences.mean(), abs=4 * error / np.sqrt(150))
    assert means.std() == pytest.approx(error, rel=0.25)
    assert len(np.unique(means)) == 150


def test_adjusted_wald_is_the_published_one():
    """Oracle: the documented result of ci.prop.ps(.05, 12, 4, 26, 6), R package statpsych (Bonett's own)."""
    interval = adjusted_wald_interval(_flips(4, 26, 48), confidence=0.95)
    assert interval == pytest.approx((0.2548067, 0.6251933), abs=1e-7)


@pytest.mark.parametrize("n", [1, 5, 36, 360])
def test_no_flip_leaves_an_interval_that_only_examples_narrow(n):
    low, high = adjusted_wald_interval(_flips(0, 0, n))
    half = stats.norm.ppf(0.975) * np.sqrt(2) / (n + 2)
    assert (low, high) == pytest.approx((-min(half, 1), min(half, 1)))


@pytest.mark.parametrize(
    ("n", "share_lost", "share_gained"), [(30, 0.01, 0.002), (100, 0.02, 0), (360, 0.05, 0.02)]
)
def test_intervals_cover_the_true_change(n, share_lost, share_gained):
    """Oracle: the definition of confidence. The bootstrap alone covers 26 % in row one, 86 % in row two."""
    rng = np.random.default_rng(7)
    runs, covered = 300, 0
    for _ in range(runs):
        lost, _, gained = rng.multinomial(n, [share_lost, 1 - share_lost - share_gained, share_gained])
        interval = paired_interval(_flips(lost, gained, n), confidence=0.95, resamples=1000, rng=rng)
        covered += interval.low <= share_gained - share_lost <= interval.high
    assert covered / runs >= 0.93


@given(
    lost=st.integers(0, 60),
    gained=st.integers(0, 60),
    same=st.integers(0, 300),
    confidence=st.floats(0.5, 0.999),
)
@settings(max_examples=60)
def test_an_interval_holds_its_estimate_and_is_never_a_point(lost, gained, same, confidence):
    n = lost + gained + same
    if n == 0:
        return
    differences = _flips(lost, gained, n)
    interval = paired_interval(
        differences, confidence=confidence, resamples=2000, rng=np.random.default_rng(0)
    )
    assert -1 <= interval.low <= differences.mean() + 1e-12
    assert differences.mean() - 1e-12 <= interval.high <= 1
    assert interval.low < interval.high


def test_the_method_switches_where_too_few_examples_changed():
    rng = np.random.default_rng(0)
    methods = [
        paired_interval(_flips(lost, 0, 400), confidence=0.95, resamples=200, rng=rng).method
        for lost in (FEW_CHANGES - 1, FEW_CHANGES)
    ]
    assert methods == ["adjusted_wald", "bca_bootstrap"]


def test_same_seed_same_interval():
    differences = _flips(30, 10, 300)
    first, again, other = (
        paired_interval(differences, confidence=0.9, resamples=150, rng=np.random.default_rng(seed))
        for seed in (4, 4, 5)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    [
        (1, 7, 18 / 256),  # airway hyper-responsiveness, Bentur 2009, in Fagerland et al. 2013: p = 0.070
        (11, 1, 0.00634765625),  # scenario A in the documentation of mlxtend.evaluate.mcnemar
        (5, 5, 1.0),
        (0, 0, 1.0),
        (6, 0, 2 / 64),
    ],
)
def test_mcnemar_is_the_published_value_or_closed_form(lost, gained, p_value):
    assert mcnemar_exact(lost, gained) == pytest.approx(p_value, abs=1e-12)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=40)
def test_mcnemar_does_not_know_which_model_is_which(lost, gained):
    assert mcnemar_exact(lost, gained) == pytest.approx(mcnemar_exact(gained, lost))
