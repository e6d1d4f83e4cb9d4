"""Verdicts on claims: against integrals and scipy's noncentral t, and in simulated studies looked at after each pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from dataeff.laws.judge import DECIDES, EFFECT, critical_t, judge, log_e_value, next_pair

LOOKS = np.arange(1, 51)


def simulated(effect: float, studies: int = 1000, noise=None) -> np.ndarray:
    """Differences of 50 pairs a study, (studies, 50), with a standard deviation of 1."""
    rng = np.random.default_rng(11)
    return effect + (noise(rng, (studies, 50)) if noise else rng.standard_normal((studies, 50)))


def looks(differences: np.ndarray) -> np.ndarray:
    """The log e-value that the mean is positive, after each pair."""
    return log_e_value(LOOKS, differences.cumsum(1) / np.sqrt((differences**2).cumsum(1)))


def first_decided(log_e: np.ndarray) -> np.ndarray:
    hit = log_e >= DECIDES
    return np.where(hit.any(1), hit.argmax(1) + 1, math.inf)


def half_normal(delta: float) -> float:
    return stats.halfnorm.pdf(delta, scale=EFFECT)


@pytest.mark.parametrize("d", [[0.3, 0.1], [0.02, -0.01, 0.03], [-0.5, -0.2, -0.4, 0.1], [0.11, 0.1, 0.12, 0.13, 0.1]])
def test_the_e_value_is_the_ratio_of_the_marginal_densities_of_t(d):
    """Of scipy's noncentral t, mixed over the effect size, to Student's t."""
    n, t = len(d), stats.ttest_1samp(d, 0).statistic
    mixed, _ = integrate.quad(lambda delta: half_normal(delta) * stats.nct.pdf(t, n - 1, delta * math.sqrt(n)), 0, 20, limit=200)
    assert judge(d).log_e_for == pytest.approx(math.log(mixed / stats.t.pdf(t, n - 1)), abs=1e-5)
    assert judge(d).log_e_for == judge([-x for x in d]).log_e_against


def test_the_e_value_of_one_pair_is_a_bet_on_its_sign_and_averages_to_one():
    bet, _ = integrate.quad(lambda delta: 2 * half_normal(delta) * stats.norm.cdf(delta), 0, 40)
    assert judge([0.7]).log_e_for == pytest.approx(math.log(bet))
    assert np.exp(log_e_value(1, [1.0, -1.0])).mean() == pytest.approx(1)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_e_value_has_mean_one_without_a_difference(n):
    def density(r: float) -> float:  # of sum d / sqrt(n sum d^2), a coordinate of a point on the sphere
        return (1 - r**2) ** ((n - 3) / 2) / (math.sqrt(math.pi) * math.gamma((n - 1) / 2) / math.gamma(n / 2))

    mean, _ = integrate.quad(
        lambda a: np.exp(log_e_value(n, math.sqrt(n) * math.sin(a))) * density(math.sin(a)) * math.cos(a),
        -math.pi / 2,
        math.pi / 2,
    )
    assert mean == pytest.approx(1, abs=1e-6)


def test_a_verdict_does_not_depend_on_the_unit_and_needs_three_pairs():
    small, large = judge([0.01, 0.02, 0.015]), judge([1.0, 2.0, 1.5])
    assert small.log_e_for == pytest.approx(large.log_e_for)
    assert small.low == pytest.approx(large.low / 100)
    assert critical_t(2) is None and judge([0.1, 0.1]).state == "undecided"
    assert judge([0.1, 0.1001, 0.0999]).state == "supported" and judge([-0.1, -0.1001, -0.0999]).state == "refuted"


def test_an_interval_excludes_zero_where_the_claim_is_decided_and_only_there():
    states = set()
    for d in simulated(0.7, 20):
        for n in range(3, 20):
            verdict = judge(d[:n])
            excludes = "supported" if verdict.low > 0 else "refuted" if verdict.high < 0 else "undecided"
            assert verdict.state == excludes
            assert verdict.low == pytest.approx(d[:n].mean() - critical_t(n) * stats.sem(d[:n]))
            states.add(verdict.state)
    assert states == {"supported", "undecided"}


def test_a_thousand_studies_without_a_difference_give_at_most_5_percent_false_claims_in_50_looks_and_a_t_test_many_more():
    d = simulated(0.0)
    most = stats.binom.ppf(0.999, len(d), 0.05) / len(d)
    assert (first_decided(looks(d)) < math.inf).mean() <= most
    assert (first_decided(looks(-d)) < math.inf).mean() <= most
    means, squares = d.cumsum(1) / LOOKS, (d**2).cumsum(1)
    errors = np.sqrt((squares - LOOKS * means**2)[:, 1:] / (LOOKS[1:] - 1) / LOOKS[1:])
    tested = stats.t.sf(means[:, 1:] / errors, LOOKS[1:] - 1) <= 0.05
    assert tested.any(1).mean() > 0.2


def test_a_claim_that_is_wrong_by_more_is_supported_no_more_often():
    """On the same noise, study for study."""
    assert np.all(first_decided(looks(simulated(-0.1))) >= first_decided(looks(simulated(0.0))))


def test_the_interval_covers_90_percent_at_all_looks_together():
    d, true = simulated(0.8), 0.8
    missed = (first_decided(looks(d - true)) < math.inf) | (first_decided(looks(true - d)) < math.inf)
    assert missed.mean() <= stats.binom.ppf(0.999, len(d), 0.10) / len(d)


@pytest.mark.parametrize("effect, median", [(1, 10), (2, 5), (4, 4)])
def test_few_pairs_decide_where_the_difference_is_as_large_as_the_noise_or_larger(effect, median):
    assert np.median(first_decided(looks(simulated(effect)))) <= median


@pytest.mark.parametrize(
    "noise",
    [
        lambda rng, shape: rng.standard_t(3, shape),
        lambda rng, shape: rng.uniform(-1, 1, shape),
        lambda rng, shape: rng.laplace(size=shape),
        lambda rng, shape: rng.exponential(size=shape) - rng.exponential(size=shape),
    ],
    ids=["heavy tails", "uniform", "laplace", "difference of skewed losses"],
)
def test_symmetric_noise_that_is_not_normal_gives_no_more_false_claims(noise):
    d = simulated(0.0, noise=noise)
    assert (first_decided(looks(d)) < math.inf).mean() <= stats.binom.ppf(0.999, len(d), 0.05) / len(d)


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
def test_as_many_pairs_are_expected_as_it_takes_in_the_middle(effect):
    """Of studies that are undecided after three pairs, about half are decided within the number then expected."""
    d = simulated(effect, 300)
    within = []
    for own, first in zip(d, first_decided(np.where(LOOKS > 3, looks(d), -math.inf)), strict=True):
        verdict = judge(own[:3])
        if verdict.state == "undecided" and verdict.pairs_expected:
            within.append(first <= 3 + verdict.pairs_expected)
    assert 0.4 < np.mean(within) < 0.85


def test_what_cannot_be_expected_has_a_reason():
    assert judge([]).reason == "there is no pair yet"
    assert "two pairs" in judge([0.1]).reason and judge([0.1]).pairs_expected is None
    same = judge([0.0, 0.0, 0.0])
    assert same.state == "undecided" and "same runs" in same.reason
    assert "more than 1,000" in judge([0.1, -0.1, 0.1, -0.1, 1e-4]).reason
    assert judge([0.1] * 4).pairs_expected == 0


def test_the_next_pair_is_of_the_claim_nearest_to_a_decision_for_its_cost():
    clear, faint, decided = [0.1, 0.14], [0.1, -0.07, 0.09], [0.1, 0.11, 0.1, 0.11]
    equal = {"clear": 1.0, "faint": 1.0, "decided": 1e-9}
    claims = {"faint": faint, "clear": clear, "decided": decided}
    assert next_pair(claims, equal) == "clear"
    assert next_pair(claims, equal | {"clear": 1000.0}) == "faint"
    assert next_pair({"decided": decided}, equal) is None
    unknown = {"dear": [], "cheap": [0.2]}
    assert next_pair(claims | unknown, equal | {"dear": 1e6, "cheap": 1e5}) == "cheap"
