"""Fits against known laws, other optimisers and hand-made bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import differential_evolution, minimize

from dataeff.errors import InputError
from dataeff.laws.fit import DELTA, WARNINGS, fit, refit
from dataeff.laws.forms import (
    Additive,
    DataConstrained,
    Exponential,
    Overfitting,
    PowerLaw,
    PowerLawWithoutFloor,
    Reciprocal,
    hold,
)

N = np.array([0.15, 0.3, 0.6, 1.4])
ONE_VARIABLE = [PowerLaw, Reciprocal, PowerLawWithoutFloor, Exponential]


def many_starts(form, x, y, loss, starts=12, seed=0):
    """The least objective that L-BFGS-B and then Nelder-Mead reach from random starts, over all parameters at once."""
    p, rng = len(form.linear), np.random.default_rng(seed)
    box = [(0, None)] * p + [tuple(np.log(b)) for b in form.bounds.values()]

    def objective(v):
        columns = [np.broadcast_to(c, y.shape) for c in form.columns(*np.atleast_2d(x), *np.exp(v[p:]))]
        law = np.maximum(sum(c * column / np.abs(column).max() for c, column in zip(v, columns, strict=False)), 1e-300)
        r = np.abs(np.log(law) - np.log(y)) if loss == "huber" else np.abs(law - y)
        return 1e6 * np.sum(np.where(r <= DELTA, r * r / 2, DELTA * (r - DELTA / 2)) if loss == "huber" else r * r)

    def polished(start):
        for _ in range(3):
            start = minimize(objective, start, method="L-BFGS-B", bounds=box, options={"ftol": 1e-16, "gtol": 1e-12}).x
        return minimize(objective, start, method="Nelder-Mead", bounds=box, options={"xatol": 1e-12, "fatol": 1e-18}).fun

    drawn = [[*rng.uniform(0, y.max(), p), *(rng.uniform(*b) for b in box[p:])] for _ in range(starts)]
    return min(map(polished, drawn)) / 1e6


@settings(deadline=None, max_examples=60)
@given(
    a=st.floats(0.02, 2),
    alpha=st.floats(0.1, 2.5),
    e=st.floats(0.5, 5),
    count=st.integers(3, 8),
    unit=st.sampled_from([1e-6, 1.0, 1e9]),
)
def test_a_law_without_noise_is_found_again_in_any_unit(a, alpha, e, count, unit):
    x = np.geomspace(0.1, 3, count)
    found = fit(PowerLaw, x * unit, PowerLaw(a, alpha, e)(x))
    assert found.law.e == pytest.approx(e, abs=1e-4)
    assert found.law.alpha == pytest.approx(alpha, rel=1e-3)
    assert found.law(x * unit) == pytest.approx(PowerLaw(a, alpha, e)(x), abs=1e-6)
    assert found.rmse < 1e-7 * max(1, np.ptp(PowerLaw(a, alpha, e)(x)))


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    form=st.sampled_from(ONE_VARIABLE),
    loss=st.sampled_from(["least_squares", "huber"]),
    noise=st.sampled_from([0.001, 0.01, 0.3]),
    seed=st.integers(0, 10_000),
    count=st.integers(3, 8),
)
def test_no_other_optimiser_finds_a_better_objective(form, loss, noise, seed, count):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0.3, 8, count))
    y = 3 + 0.3 * x**-0.5 + rng.normal(0, noise, count)
    found = fit(form, x, y, loss=loss)
    assert found.certified or loss == "huber"  # whose kinks can keep the promised fall above 1e-9 at the optimum
    assert found.objective <= many_starts(form, x, y, loss, seed=seed) * (1 + 1e-9) + 1e-18


@pytest.mark.parametrize("seed", range(3))
def test_no_global_search_finds_a_smaller_sum_of_squares(seed):
    rng = np.random.default_rng(seed)
    x = np.geomspace(200, 3200, 5)
    y = PowerLaw(6.0, 0.24, 1.9)(x) + rng.normal(0, 0.01, 5)
    found = fit(PowerLaw, x, y)
    searched = differential_evolution(
        lambda p: float(np.sum((p[0] * (x / 800) ** -p[1] + p[2] - y) ** 2)),
        [(0, 10), (0.02, 3), (0, 5)],
        seed=seed,
        tol=1e-12,
        maxiter=2000,
    )
    assert found.objective <= searched.fun * (1 + 1e-6)
    assert found.objective == pytest.approx(float(np.sum((found.law(x) - y) ** 2)))


def test_the_law_of_the_regularized_recipe_is_found_from_points_on_it():
    found = fit(PowerLaw, N, 0.05 * N**-1.02 + 3.43)
    assert (found.law.a, found.law.alpha, found.law.e) == pytest.approx((0.05, 1.02, 3.43), abs=1e-5)
    assert found.limit == found.law.e


def lattice():
    n, d, unique = (axis.ravel() for axis in np.meshgrid([1e8, 3e8, 1e9, 3e9], [2e9, 8e9, 32e9], [1e9, 2e9, 8e9]))
    return np.unique([n, d, np.minimum(unique, d)], axis=1)


@pytest.mark.parametrize(
    "law",
    [
        Additive(482, 0.348, 2085, 0.366, 1.82),
        DataConstrained(521, 0.353, 1488, 0.353, 1.87, 15.4, 5.3),
        Overfitting(482, 0.348, 2085, 0.366, 1.82, 0.01),
    ],
)
def test_laws_of_several_variables_are_found_from_points_on_them(law):
    x = lattice()[: len(law.variables)]
    x = np.unique(x, axis=1)
    found = fit(type(law), x, law(*x))
    assert found.law(*x) == pytest.approx(law(*x), abs=1e-9)
    assert found.law.e == pytest.approx(law.e, abs=1e-5)
    assert found.warnings == ()


def test_hubers_loss_forgives_a_run_that_went_wrong():
    x = np.geomspace(0.1, 10, 8)
    y = PowerLaw(0.3, 0.6, 3.0)(x)
    y[3] += 0.5
    assert fit(PowerLaw, x, y, loss="huber").law.e == pytest.approx(3.0, abs=2 * DELTA)
    assert abs(fit(PowerLaw, x, y).law.e - 3.0) > 20 * DELTA


@pytest.mark.parametrize("form", [*ONE_VARIABLE, Additive])
def test_refits_are_the_fits_of_each_resample(form):
    rng, several = np.random.default_rng(0), form is Additive
    x = np.exp(rng.uniform(0, 4, (2, 9))) if several else np.geomspace(0.5, 8, 6)
    ys = 3 + 0.4 * np.atleast_2d(x)[0] ** -0.6 + rng.normal(0, 0.01, (25, x.shape[-1]))
    found = refit(form, x, ys)
    for i, y in enumerate(ys):
        alone = fit(form, x, y)
        assert found.objective[i] == pytest.approx(alone.objective, rel=1e-9)
        assert found.laws()[i](*np.atleast_2d(x)) == pytest.approx(alone.law(*np.atleast_2d(x)), abs=1e-6)


def test_weights_of_zero_leave_rows_out_and_weights_of_two_count_them_twice():
    x, y = np.geomspace(0.5, 8, 6), 3 + 0.4 * np.geomspace(0.5, 8, 6) ** -0.6 + 0.01 * np.array([1, -1, 2, 0, -2, 1])
    found = refit(PowerLaw, x, [y, y], weights=[[1, 1, 0, 1, 1, 1], [1, 2, 1, 1, 1, 1]])
    without = fit(PowerLaw, np.delete(x, 2), np.delete(y, 2))
    assert found.parameters["e"][0] == pytest.approx(without.law.e, rel=1e-7)
    assert found.parameters["e"][1] == pytest.approx(fit(PowerLaw, x, y, weights=[1, 2, 1, 1, 1, 1]).law.e, rel=1e-7)
    almost = refit(PowerLaw, np.append(x, x[1] * (1 + 1e-9)), np.append(y, y[1]))
    assert found.parameters["e"][1] == pytest.approx(almost.parameters["e"][0], rel=1e-6)


@pytest.mark.parametrize(
    ("y", "warning"),
    [
        ([3.0, 3.1, 3.2, 3.3], "points_do_not_fall"),
        ([3.0, 3.0, 3.0, 3.0], "points_do_not_fall"),
        (4 - 0.01 * np.log(N), "alpha_at_lower_bound"),
        ([4.0, 3.0, 3.0, 3.0], "alpha_at_upper_bound"),
        (0.5 * N**-0.5 - [0, 0, 0, 0.01], "e_at_zero"),
    ],
)
def test_a_doubtful_fit_says_why_and_has_no_limit(y, warning):
    found = fit(PowerLaw, N, y)
    assert found.warnings == (warning,)
    assert warning in WARNINGS
    assert found.limit is None


def test_points_that_do_not_determine_the_law_are_told():
    n, d = np.array([1.0, 1, 1, 1, 1, 1]), np.arange(1.0, 7)
    assert "undetermined" in fit(Additive, [n, d], 3 + 1 / d + 0.01 * np.array([1, -1, 1, -1, 1, -1])).warnings


def test_the_points_that_rise_are_named():
    assert fit(PowerLaw, [0.6, 0.15, 1.4, 0.3], [3.5, 3.7, 3.52, 3.6]).rising == (1.4,)


def test_three_points_leave_nothing_to_test_the_law_with():
    found = fit(PowerLaw, N[:3], 0.05 / N[:3] + 3.43)
    assert found.warnings == ("no_freedom",)
    assert found.limit == pytest.approx(3.43)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, math.nan, 4], [4, 3, 2, 1], r"row 2: \(nan, 2\): x and y must be finite"),
        ([1, 2, 3], [4, math.inf, 2], r"row 1: \(2, inf\)"),
        ([1, math.inf, 3], [4, 3, 2], r"row 1: \(inf, 3\)"),
        ([1, 2, 3, 4], [4, None, 2, 1], r"row 1: \(2, nan\)"),
        ([1, 2, 3], np.ma.masked_array([4.0, 3, 2], [0, 0, 1]), r"row 2: \(3, nan\)"),
        ([-1, 0, 3], [4, 3, 2], r"row 0: \(-1, 4\), row 1: \(0, 3\): x must be above 0"),
        ([1, 2, 1e200], [4, 3, 2], r"row 2: \(1e\+200, 2\): x must be above 0 and between"),
        ([1, 2, 2, 3], [4, 3, 3, 2], "2 rows have x = 2: x must differ"),
        ([1, 2, 3], [4, 3, -2], r"row 2: \(3, -2\): y is a loss"),
        ([1, 2], [4, 3], "2 points: a law with 3 parameters needs at least 3"),
        ([1], [4], "1 point: a law"),
        ([], [], "0 points"),
        ([1, 2, 3], [4, 3], r"x has shape \(3,\) and y \(2,\)"),
        ([1, 2, 3], ["4", "three", 2], "y must be numbers, one a row: .*'three'"),
        ("abc", [4, 3, 2], "x must be numbers, one a row: .*'abc'"),
        ([1, 2, [3, 4]], [4, 3, 2], "x must be numbers, one a row"),
        ([1, 2, 3j], [4, 3, 2], "x must be numbers, one a row: .*complex"),
    ],
)
def test_points_that_cannot_be_used_are_named(x, y, message):
    with pytest.raises(InputError, match=message):
        fit(PowerLaw, x, y)


def test_bad_weights_and_unknown_losses_are_refused():
    with pytest.raises(InputError, match=r"row 1: .* weights must be finite and above 0"):
        fit(PowerLaw, [1, 2, 3], [4, 3, 2], weights=[1, 0, 1])
    with pytest.raises(InputError, match="valid are 'least_squares' and"):
        fit(PowerLaw, [1, 2, 3], [4, 3, 2], loss="absolute")
    with pytest.raises(InputError, match="valid are 'least_squares' and"):
        fit(PowerLaw, [1, 2, 3], [4, 3, 0], loss="huber")
    with pytest.raises(InputError, match="one row for each of n, d in x"):
        fit(Additive, [1, 2, 3], [4, 3, 2])
    with pytest.raises(InputError, match="refits need finite losses"):
        refit(PowerLaw, [1, 2, 3], [[4, 3, math.nan]])


@pytest.mark.parametrize("loss", ["least_squares", "huber"])
@pytest.mark.parametrize("constants", [{"alpha": 0.35}, {"e": 1.8}, {"alpha": 0.35, "b": 1e3}, {"beta": 0.37, "e": 1.8}], ids=str)
def test_the_rest_of_a_law_with_parameters_held_is_what_another_optimiser_finds(constants, loss):
    random = np.random.default_rng(0)
    x = 10 ** random.uniform([[7.5], [9]], [[10], [11.5]], (2, 60))
    y = Additive(482, 0.348, 2085, 0.366, 1.817)(*x) * np.exp(0.003 * random.normal(size=60))
    found = fit(hold(Additive, constants), x, y, loss=loss)
    assert found.certified and found.parameters == 5 - len(constants)
    free = [name for name in ("a", "alpha", "b", "beta", "e") if name not in constants]

    def objective(values):
        law = Additive(**constants, **dict(zip(free, np.exp(values), strict=True)))(*x)
        r = np.abs(np.log(law) - np.log(y)) if loss == "huber" else np.abs(law - y)
        return np.sum(np.where(r <= DELTA, r * r / 2, DELTA * (r - DELTA / 2)) if loss == "huber" else r * r)

    truth = {"a": 482, "alpha": 0.348, "b": 2085, "beta": 0.366, "e": 1.817}
    start, options = np.log([truth[name] for name in free]), {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-10, "fatol": 1e-16}
    assert found.objective <= minimize(objective, start, method="Nelder-Mead", options=options).fun * (1 + 1e-7)
    assert {name: getattr(found.law, name) for name in constants} == constants
    assert found.objective == pytest.approx(objective(np.log([getattr(found.law, name) for name in free])))


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"alhpa": 0.3}, "no such parameter; did you mean 'alpha'"),
        ({"alpha": 7.0}, "takes 0.02 to 3"),
        ({"e": -1.0}, "takes 0 to inf"),
        ({"a": 1.0, "e": 3.0}, "one of a, e must be left to fit"),
    ],
)
def test_what_a_form_cannot_hold_is_refused(constants, said):
    with pytest.raises(InputError, match=said):
        hold(PowerLaw, constants)
