"""Data efficiency both ways, on laws whose inverse is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from dataeff.laws.efficiency import tokens_by_interpolation, tokens_by_law
from dataeff.laws.forms import PowerLaw

D = 209.7 * 2.0 ** np.arange(4)
LAW = PowerLaw(6.0, 0.235, 1.92)


def by_law(*losses: float, a: float = 6.0) -> np.ndarray:
    one = np.ones(len(losses))
    return tokens_by_law(a * one, 0.235 * one, 1.92 * one, np.array(losses))


def between(x, ys, *losses: float) -> np.ndarray:
    return tokens_by_interpolation(np.array(x, float), np.tile(ys, (len(losses), 1)), np.array(losses))


def test_a_law_is_inverted_and_what_it_never_reaches_takes_infinite_tokens():
    assert by_law(float(LAW(3 * 209.7)), 1.92, 1.5) == pytest.approx([3 * 209.7, np.inf, np.inf])
    assert by_law(3.0, 1.5, a=0.0) == pytest.approx([0, np.inf])
    assert by_law(np.nan) == [np.inf]
    assert tokens_by_law(6.0, 0.02, 1.9, np.array([1.9 + 1e-12])) == [np.inf]  # beyond any number


def test_interpolation_passes_through_the_points_and_is_a_line_in_log_tokens():
    assert between(D, LAW(D), *LAW(D)) == pytest.approx(D)
    assert between([1, 100], [4.0, 3.0], 3.5) == pytest.approx([10])


def test_losses_that_rise_with_tokens_are_pooled_and_the_fewest_tokens_count():
    assert between([1, 10, 100, 1000], [4.0, 3.2, 3.4, 3.0], 3.3) == pytest.approx([10])
    draw = np.random.default_rng(0)
    x, ys = np.arange(1.0, 7), draw.uniform(3, 4, (200, 6))
    levels = np.array([isotonic_regression(y, increasing=False).x for y in ys])
    falls = levels[:, 0] - levels[:, -1] > 0.01
    ys, levels = ys[falls], levels[falls]
    losses = (levels[:, 0] + levels[:, -1]) / 2
    tokens = tokens_by_interpolation(x, ys, losses)
    for at, level, loss in zip(tokens, levels, losses, strict=True):
        assert np.interp(np.log(at), np.log(x), level) == pytest.approx(loss)


def test_a_loss_outside_the_measured_range_is_infinitely_far():
    assert list(between(D, LAW(D), 2.0, 9.0)) == [np.inf, -np.inf]
