"""Intervals against profiles by brute force, simulated laws and formulas by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq, minimize

from dataeff.errors import InputError
from dataeff.laws.fit import fit, fit_power_law, refit
from dataeff.laws.forms import Additive, Exponential, PowerLaw, PowerLawWithoutFloor, Reciprocal
from dataeff.laws.intervals import At, Reaching, compare, default_interval, interval, leave_largest_out, profile

X = np.geomspace(0.1, 3, 6)
LAW = PowerLaw(0.3, 0.8, 3.0)
SD = 0.002
Y = LAW(X) + SD * np.array([0.5, -0.8, 0.3, 0.6, -0.9, 0.2])


def constrained(of, value):
    """The least sum of squares with a quantity held at a value, by scipy's SLSQP from the best fit."""
    best = fit_power_law(X, Y).law
    found = minimize(
        lambda v: 1e6 * np.sum((PowerLaw(*v)(X) - Y) ** 2),
        [best.a, best.alpha, best.e],
        bounds=[(0, None), (0.02, 3), (0, None)],
        constraints={"type": "eq", "fun": lambda v: of(PowerLaw(*v)) - value},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.fun / 1e6


QUANTITIES = {
    "limit": lambda law: law.e,
    "alpha": lambda law: law.alpha,
    "a": lambda law: law.a,
    At(10.0): lambda law: float(law(10.0)),
    Reaching(3.1): lambda law: law.inverse(3.1),
}


@pytest.mark.parametrize("of", QUANTITIES)
def test_the_ends_of_a_profile_interval_are_where_the_constrained_fit_meets_the_ceiling(of):
    fitted = fit_power_law(X, Y)
    estimate, found = QUANTITIES[of](fitted.law), interval(fitted, of, sd=SD)

    def excess(value):
        return constrained(QUANTITIES[of], value) - fitted.objective - SD**2 * stats.chi2.ppf(0.9, 1)

    width = found.high - found.low
    for end, far in ((found.low, found.low - width), (found.high, found.high + width)):
        assert end == pytest.approx(brentq(excess, *sorted((estimate, far))), abs=2e-3 * width)


def test_an_unknown_sd_widens_the_interval_as_f_does():
    fitted = fit_power_law(X, Y)
    unknown = interval(fitted)
    sd = math.sqrt(fitted.objective / 3)
    as_known = interval(fitted, level=stats.chi2.cdf(stats.f.ppf(0.9, 1, 3), 1), sd=sd)
    assert (unknown.low, unknown.high) == pytest.approx((as_known.low, as_known.high), abs=1e-6)
    assert interval(fitted, sd=sd, freedom=3) == unknown


TRUTHS = [
    (PowerLaw(0.05, 1.02, 3.43), np.geomspace(0.15, 1.4, 4), 0.003),
    (PowerLaw(6.0, 0.235, 1.92), 209.7 * 2.0 ** np.arange(5), 0.01),
    (PowerLaw(0.2, 0.9, 3.2), np.arange(1.0, 9), 0.001),
    (PowerLaw(0.2, 0.9, 3.2), np.arange(1.0, 5), 0.01),
]


@pytest.mark.parametrize(("law", "x", "sd"), TRUTHS)
def test_default_intervals_of_the_limit_cover_as_often_as_they_say(law, x, sd):
    n, runs = len(x), 1500
    ys = law(x) + np.random.default_rng(n).normal(0, sd, (runs, n))
    best = refit(PowerLaw, x, ys).objective
    gain = profile(PowerLaw, x, ys, "limit", np.full(runs, law.limit)) - best
    assert gain.min() > -1e-9
    known = gain <= sd**2 * stats.chi2.ppf(0.9, 1)
    unknown = gain <= best / (n - 3) * stats.f.ppf(0.9, 1, n - 3)
    assert 0.85 < known.mean() < 0.95
    assert 0.85 < unknown.mean() < 0.95
    for i in range(8):  # what was counted is what `interval` gives
        fitted = fit_power_law(x, ys[i])
        for keywords, covers in (({"sd": sd}, known[i]), ({}, unknown[i])):
            found = interval(fitted, **keywords)
            assert (found.low <= law.limit <= found.high) == covers


def test_three_points_have_an_interval_only_with_known_noise():
    fitted = fit_power_law(X[:3], LAW(X[:3]))
    nothing = interval(fitted)
    assert (nothing.low, nothing.high) == (None, None)
    assert "only a known run-to-run noise" in nothing.reason
    found = interval(fitted, sd=SD)
    assert found.low < 3.0 < found.high


def test_the_default_for_each_situation_is_told_with_its_reason():
    assert default_interval(3, 3, False) == (None, default_interval(3, 3, False)[1])
    assert "one degree of freedom" in default_interval(4, 3, False)[1]
    assert "chi-square" in default_interval(4, 3, True)[1]
    assert "8 degrees" in default_interval(4, 3, False, replicates=3)[1]
    assert default_interval(2, 3, True)[0] is None


@pytest.mark.parametrize("method", ["residual_bootstrap", "parametric_bootstrap", "jackknife"])
def test_bootstraps_and_the_jackknife_come_near_the_profile_with_many_points(method):
    x = np.geomspace(0.1, 30, 60)
    fitted = fit_power_law(x, LAW(x) + np.random.default_rng(3).normal(0, SD, 60))
    one, other = interval(fitted, method=method, sd=SD, resamples=1000), interval(fitted, sd=SD)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.4 * (other.high - other.low))
    assert one == interval(fitted, method=method, sd=SD, resamples=1000)


def test_an_interval_of_what_has_no_bound_is_open():
    fitted = fit_power_law(X, Y)
    assert interval(fitted, Reaching(fitted.law.e + 1e-4), sd=SD).high == math.inf
    assert "has no Reaching" in interval(fitted, Reaching(2.0), sd=SD).reason
    rising = fit_power_law(X, LAW(X)[::-1])
    assert interval(rising, "a", sd=SD).reason == "the law has no a"
    assert interval(rising, "alpha", sd=SD).high == pytest.approx(3)  # any exponent will do
    assert interval(fitted, lambda law: law.a / 2, method="jackknife").low > 0


def test_what_an_interval_cannot_be_taken_of_is_refused():
    fitted = fit_power_law(X, Y)
    for wrong in ({"of": "beta"}, {"method": "magic"}, {"sd": -1.0}, {"level": 2.0}, {"of": lambda law: law.a}):
        with pytest.raises(InputError):
            interval(fitted, **wrong)
    with pytest.raises(InputError, match="least-squares"):
        interval(fit(PowerLaw, X, Y, loss="huber"))
    assert "by its form" in interval(fit(PowerLawWithoutFloor, X, Y)).reason
    assert interval(fitted, method="parametric_bootstrap").reason == "parametric_bootstrap needs sd"


def test_the_limit_of_a_law_of_two_variables_has_an_interval():
    law, rng = Additive(0.3, 0.5, 0.4, 0.4, 2.0), np.random.default_rng(0)
    n, d = (axis.ravel() for axis in np.meshgrid([0.1, 0.3, 1, 3], [0.1, 0.3, 1, 3, 9]))
    found = interval(fit(Additive, [n, d], law(n, d) + rng.normal(0, 0.003, 20)), sd=0.003)
    assert found.low < 2.0 < found.high < 2.1


def test_the_largest_point_is_foretold_from_the_others():
    y = LAW(X)
    y[-1] += 0.05
    found = leave_largest_out(fit_power_law(X, y))
    assert (found.x, found.miss, found.law.e) == pytest.approx((3.0, 0.05, 3.0), abs=1e-6)
    assert leave_largest_out(fit_power_law(X[:3], y[:3])).predicted is None


def test_forms_are_compared_by_aicc_and_by_held_out_error():
    rows = {row.form.__name__: row for row in compare([PowerLaw, Reciprocal, Exponential], X, Y)}
    assert list(rows)[0] == "PowerLaw"
    sse, k, n = fit_power_law(X, Y).objective, 4, 6
    assert rows["PowerLaw"].aicc == pytest.approx(n * math.log(sse / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
    errors = [fit_power_law(np.delete(X, i), np.delete(Y, i)).law(X[i]) - Y[i] for i in range(6)]
    assert rows["PowerLaw"].held_out == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)


def test_too_few_points_to_compare_say_so():
    power, reciprocal = sorted(compare([PowerLaw, Reciprocal], X[:3], Y[:3]), key=lambda row: row.form.__name__)
    assert (power.aicc, power.held_out, reciprocal.aicc) == (None, None, None)
    assert power.reason == "too few points: AICc needs 6 points, there are 3; leaving one out needs 4 points, there are 3"
    assert reciprocal.held_out is not None
