"""The power-law fit against known laws, scipy and hand-made bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import differential_evolution

from dataeff.errors import InputError
from dataeff.laws.fit import WARNINGS, fit_power_law
from dataeff.laws.forms import PowerLaw

N = np.array([0.15, 0.3, 0.6, 1.4])


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
    fit = fit_power_law(x * unit, PowerLaw(a, alpha, e)(x))
    assert fit.law.e == pytest.approx(e, abs=1e-4)
    assert fit.law.alpha == pytest.approx(alpha, rel=1e-3)
    assert fit.law(x * unit) == pytest.approx(PowerLaw(a, alpha, e)(x), abs=1e-6)
    assert fit.rmse < 1e-7 * max(1, np.ptp(PowerLaw(a, alpha, e)(x)))


@pytest.mark.parametrize("seed", range(4))
def test_no_global_search_finds_a_smaller_sum_of_squares(seed):
    rng = np.random.default_rng(seed)
    x = np.geomspace(200, 3200, 5)
    y = PowerLaw(6.0, 0.24, 1.9)(x) + rng.normal(0, 0.01, 5)
    fit = fit_power_law(x, y)
    searched = differential_evolution(
        lambda p: float(np.sum((p[0] * (x / 800) ** -p[1] + p[2] - y) ** 2)),
        [(0, 10), (0.02, 3), (0, 5)],
        seed=seed,
        tol=1e-12,
        maxiter=2000,
    )
    assert fit.objective <= searched.fun * (1 + 1e-6)
    assert fit.objective == pytest.approx(float(np.sum((fit.law(x) - y) ** 2)))


def test_the_law_of_the_regularized_recipe_is_found_from_points_on_it():
    fit = fit_power_law(N, 0.05 * N**-1.02 + 3.43)
    assert (fit.law.a, fit.law.alpha, fit.law.e) == pytest.approx((0.05, 1.02, 3.43), abs=1e-5)


@pytest.mark.parametrize(
    ("y", "warning"),
    [
        ([3.0, 3.1, 3.2, 3.3], "points_do_not_fall"),
        (4 - 0.01 * np.log(N), "alpha_at_lower_bound"),
        ([4.0, 3.0, 3.0, 3.0], "alpha_at_upper_bound"),
        (0.5 * N**-0.5 - [0, 0, 0, 0.01], "e_at_zero"),
    ],
)
def test_a_doubtful_fit_says_why(y, warning):
    assert fit_power_law(N, y).warnings == (warning,)
    assert warning in WARNINGS


def test_three_points_leave_nothing_to_test_the_law_with():
    assert fit_power_law(N[:3], 0.05 / N[:3] + 3.43).warnings == ("no_freedom",)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, math.nan, 4], [4, 3, 2, 1], r"row 2: \(nan, 2\): x and y must be finite"),
        ([1, 2, 3], [4, math.inf, 2], r"row 1: \(2, inf\)"),
        ([-1, 0, 3], [4, 3, 2], r"row 0: \(-1, 4\), row 1: \(0, 3\): x must be above 0"),
        ([1, 2, 2, 3], [4, 3, 3, 2], r"row 1: \(2, 3\), row 2: \(2, 3\): x must differ"),
        ([1, 2, 3], [4, 3, -2], r"row 2: \(3, -2\): y is a loss"),
        ([1, 2], [4, 3], "2 points: a law with three parameters needs at least 3"),
        ([1, 2, 3], [4, 3], r"x has shape \(3,\) and y \(2,\)"),
    ],
)
def test_points_that_cannot_be_used_are_named(x, y, message):
    with pytest.raises(InputError, match=message):
        fit_power_law(x, y)


def test_the_inverse_inverts_the_law_and_is_none_at_or_below_its_limit():
    x = np.array([200.0, 400, 800, 1600])
    fit = fit_power_law(x, PowerLaw(6.0, 0.24, 1.9)(x))
    assert fit.law.inverse(float(fit.law(5000.0))) == pytest.approx(5000, rel=1e-9)
    assert fit.law.inverse(fit.law.e) is None
    assert fit.law.inverse(1.0) is None


def test_a_loss_just_above_the_limit_needs_tokens_beyond_any_number():
    assert PowerLaw(6.0, 0.02, 1.9).inverse(1.9 + 1e-12) == math.inf
