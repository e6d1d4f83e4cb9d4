"""Data efficiency both ways, on laws whose inverse is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataeff.errors import InputError
from dataeff.laws.efficiency import efficiency_by_interpolation, efficiency_by_law
from dataeff.laws.fit import fit, fit_power_law
from dataeff.laws.forms import Additive, PowerLaw

D = 209.7 * 2.0 ** np.arange(4)
LAW = PowerLaw(6.0, 0.235, 1.92)
BASELINE = fit_power_law(D, LAW(D))


def test_a_recipe_as_good_as_the_baseline_with_three_times_the_tokens_is_three_times_as_efficient():
    found = efficiency_by_law(BASELINE, float(LAW(3 * 209.7)), 209.7)
    assert (found.ratio, found.extrapolated) == (pytest.approx(3, rel=1e-6), False)
    assert efficiency_by_law(BASELINE, float(LAW(50 * 209.7)), 209.7).extrapolated
    by_points = efficiency_by_interpolation(D, LAW(D), float(LAW(3 * 209.7)), 209.7)
    assert by_points.ratio == pytest.approx(3, rel=0.02)  # the law is nearly a line in log D
    assert by_points.measured == (D[0], D[-1])


@pytest.mark.parametrize("i", range(4))
def test_interpolation_passes_through_the_points(i):
    assert efficiency_by_interpolation(D[::-1], LAW(D)[::-1], float(LAW(D[i])), 209.7).tokens == pytest.approx(D[i])


def test_interpolation_is_a_straight_line_in_the_logarithm_of_tokens():
    assert efficiency_by_interpolation([1, 100], [4.0, 3.0], 3.5, 2).tokens == pytest.approx(10)


def test_losses_that_rise_with_tokens_are_pooled_and_the_fewest_tokens_count():
    found = efficiency_by_interpolation([1, 10, 100, 1000], [4.0, 3.2, 3.4, 3.0], 3.3, 1)
    assert found.tokens == pytest.approx(10)


def test_a_loss_outside_the_measured_range_has_no_interpolated_efficiency():
    for loss in (2.0, 9.0):
        found = efficiency_by_interpolation(D, LAW(D), loss, 209.7)
        assert (found.ratio, found.tokens) == (None, None)
        assert "outside the measured range" in found.reason


def test_a_loss_at_or_below_the_baselines_limit_has_no_efficiency():
    assert "its limit is 1.92" in efficiency_by_law(BASELINE, 1.9, 209.7).reason
    flat = fit_power_law(D, [3.0, 3.1, 3.2, 3.3])
    assert "do not fall" in efficiency_by_law(flat, 3.2, 209.7).reason


def test_nonsense_is_refused():
    for loss, tokens in ((math.nan, 1.0), (-1.0, 1.0), (3.0, 0.0), (3.0, math.inf)):
        with pytest.raises(InputError):
            efficiency_by_law(BASELINE, loss, tokens)
        with pytest.raises(InputError):
            efficiency_by_interpolation(D, LAW(D), loss, tokens)
    with pytest.raises(InputError, match="at least 2"):
        efficiency_by_interpolation([1], [3], 3.0, 1.0)
    with pytest.raises(InputError, match="law of n, d"):
        n, d = (axis.ravel() for axis in np.meshgrid([1.0, 2, 3], [1.0, 2, 3]))
        efficiency_by_law(fit(Additive, [n, d], 2 + 1 / n + 1 / d), 3.0, 1.0)
