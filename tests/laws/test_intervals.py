"""Intervals against profiles by brute force, simulated laws and formulas by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq, minimize

from dataeff.errors import InputError
from dataeff.laws.fit import fit, refit, refit_huber
from dataeff.laws.forms import Additive, Exponential, PowerLaw, PowerLawWithoutFloor, Reciprocal, hold
from dataeff.laws.intervals import compare, interval, leave_largest_out, profile

X = np.geomspace(0.1, 3, 6)
LAW = PowerLaw(0.3, 0.8, 3.0)
SD = 0.002
Y = LAW(X) + SD * np.array([0.5, -0.8, 0.3, 0.6, -0.9, 0.2])


def least_squares_with_limit(e):
    """The least sum of squares with the limit held at a value, by scipy's L-BFGS-B from the best fit."""
    best = fit(PowerLaw, X, Y).law
    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 2000}
    result = minimize(
        lambda v: 1e6 * np.sum((PowerLaw(*v, e)(X) - Y) ** 2),
        [best.a, best.alpha],
        bounds=[(0, None), (0.02, 3)],
        method="L-BFGS-B",
        options=options,
    )
    return result.fun / 1e6


def test_the_ends_of_an_interval_are_where_the_fit_with_a_held_limit_meets_the_ceiling():
    fitted = fit(PowerLaw, X, Y)
    ends = interval(fitted, sd=SD)

    def excess(value):
        return least_squares_with_limit(value) - fitted.objective - SD**2 * stats.chi2.ppf(0.9, 1)

    width = ends.high - ends.low
    for end, far in ((ends.low, ends.low - width), (ends.high, ends.high + width)):
        assert end == pytest.approx(brentq(excess, *sorted((fitted.law.e, far))), abs=2e-3 * width)


def test_an_unknown_sd_widens_the_interval_as_f_does():
    fitted = fit(PowerLaw, X, Y)
    unknown = interval(fitted)
    sd = math.sqrt(fitted.objective / 3)
    as_known = interval(fitted, level=stats.chi2.cdf(stats.f.ppf(0.9, 1, 3), 1), sd=sd)
    assert (unknown.low, unknown.high) == pytest.approx((as_known.low, as_known.high), abs=1e-6)
    same = interval(fitted, sd=sd, freedom=3)
    assert (same.low, same.high) == (unknown.low, unknown.high)


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
    gain = profile(PowerLaw, x, ys, np.full(runs, law.limit)) - best
    assert gain.min() > -1e-9
    known = gain <= sd**2 * stats.chi2.ppf(0.9, 1)
    unknown = gain <= best / (n - 3) * stats.f.ppf(0.9, 1, n - 3)
    assert 0.85 < known.mean() < 0.95
    assert 0.85 < unknown.mean() < 0.95
    for i in range(8):  # what was counted is what `interval` gives
        fitted = fit(PowerLaw, x, ys[i])
        for keywords, covers in (({"sd": sd}, known[i]), ({}, unknown[i])):
            ends = interval(fitted, **keywords)
            assert (ends.low <= law.limit <= ends.high) == covers


def test_three_points_have_an_interval_only_with_known_noise():
    fitted = fit(PowerLaw, X[:3], LAW(X[:3]))
    nothing = interval(fitted)
    assert (nothing.low, nothing.high) == (None, None)
    assert "only a known run-to-run noise" in nothing.reason
    ends = interval(fitted, sd=SD)
    assert ends.low < 3.0 < ends.high


def test_an_interval_names_the_freedom_it_rests_on():
    assert "one degree of freedom" in interval(fit(PowerLaw, X[:4], Y[:4])).reason
    assert "3 degrees of freedom" in interval(fit(PowerLaw, X, Y)).reason
    assert "chi-square" in interval(fit(PowerLaw, X, Y), sd=SD).reason


def test_what_an_interval_cannot_be_taken_of_is_refused():
    fitted = fit(PowerLaw, X, Y)
    for wrong in ({"sd": -1.0}, {"level": 2.0}):
        with pytest.raises(InputError, match="sd > 0"):
            interval(fitted, **wrong)
    assert "needs 15 points; there are 6" in interval(fit(PowerLaw, X, Y, loss="huber")).reason
    assert "by its form" in interval(fit(PowerLawWithoutFloor, X, Y)).reason


def test_the_limit_of_a_law_of_two_variables_has_an_interval():
    law, rng = Additive(0.3, 0.5, 0.4, 0.4, 2.0), np.random.default_rng(0)
    n, d = (axis.ravel() for axis in np.meshgrid([0.1, 0.3, 1, 3], [0.1, 0.3, 1, 3, 9]))
    ends = interval(fit(Additive, [n, d], law(n, d) + rng.normal(0, 0.003, 20)), sd=0.003)
    assert ends.low < 2.0 < ends.high < 2.1


def test_the_largest_point_is_predicted_from_the_others():
    y = LAW(X)
    y[-1] += 0.05
    miss = leave_largest_out(fit(PowerLaw, X, y))
    assert (miss.x, miss.measured - miss.predicted) == pytest.approx((3.0, 0.05), abs=1e-6)
    assert leave_largest_out(fit(PowerLaw, X[:3], y[:3])).predicted is None


def test_forms_are_compared_by_aicc_and_by_held_out_error():
    rows = {row.form.__name__: row for row in compare([PowerLaw, Reciprocal, Exponential], X, Y)}
    assert list(rows)[0] == "PowerLaw"
    sse, k, n = fit(PowerLaw, X, Y).objective, 4, 6
    assert rows["PowerLaw"].aicc == pytest.approx(n * math.log(sse / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
    errors = [fit(PowerLaw, np.delete(X, i), np.delete(Y, i)).law(X[i]) - Y[i] for i in range(6)]
    assert rows["PowerLaw"].held_out == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)


def test_too_few_points_to_compare_say_so():
    power, reciprocal = sorted(compare([PowerLaw, Reciprocal], X[:3], Y[:3]), key=lambda row: row.form.__name__)
    assert (power.aicc, power.held_out, reciprocal.aicc) == (None, None, None)
    assert power.reason == "too few points: AICc needs 6 points, there are 3; leaving one out needs 4 points, there are 3"
    assert reciprocal.held_out is not None


def test_the_bootstrap_of_a_fit_by_hubers_loss_refits_each_resample_and_holds_the_truth_beside_outliers():
    """Coverage is measured by benchmarks/laws.py."""
    random, x = np.random.default_rng(3), np.geomspace(0.1, 30, 30)
    y = PowerLaw(0.5, 0.6, 3.0)(x) * np.exp(0.003 * random.standard_t(2, len(x)))
    fitted = fit(PowerLaw, x, y, loss="huber")
    ends = interval(fitted)
    assert ends.low < 3.0 < ends.high < ends.low + 0.1
    rows = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 400)[:8]
    for row, law in zip(rows, refit_huber(fitted, rows), strict=True):
        anew = fit(PowerLaw, x[row > 0], y[row > 0], loss="huber", weights=row[row > 0])
        assert law.e == pytest.approx(anew.law.e, abs=1e-5)


def test_the_interval_of_a_law_with_a_parameter_held_is_narrower_and_a_held_limit_has_none():
    held = fit(hold(PowerLaw, {"alpha": 0.8}), X, Y)
    free = fit(PowerLaw, X, Y)
    widths = [ends.high - ends.low for ends in (interval(held, sd=SD), interval(free, sd=SD))]
    slope = stats.linregress(X**-0.8, Y)  # with its exponent held the law is a straight line
    assert held.law.e == pytest.approx(slope.intercept) and widths[0] < widths[1]
    straight = np.sqrt(np.linalg.inv(np.array([[6, (X**-0.8).sum()], [(X**-0.8).sum(), (X**-1.6).sum()]]))[0, 0]) * SD
    assert widths[0] == pytest.approx(2 * stats.norm.ppf(0.95) * straight, rel=1e-6)
    assert interval(fit(hold(PowerLaw, {"e": 3.0}), X, Y)).reason == "the limit of PowerLaw is 3, held"
