"""The chain of limits: exact on exact laws, and its intervals cover what they should on simulated ones."""

from __future__ import annotations

import numpy as np
import pytest

from dataeff.laws.chain import Budget, chain, tokens_by_law
from dataeff.laws.fit import fit
from dataeff.laws.forms import Exponential, PowerLaw

SIZES, BUDGETS = np.array([0.15, 0.3, 0.6, 1.4]), 209.7e6 * 2.0 ** np.arange(4)
BASE, BETTER = PowerLaw(7.0, 0.25, 2.1), PowerLaw(6.0, 0.235, 1.92)  # over D in 1e6 tokens


def budget(tokens: float, losses: np.ndarray, over_sizes: bool, error: float, freedom: float = np.inf) -> Budget:
    errors, known = np.full(len(losses), error), np.full(len(losses), freedom)
    return Budget(tokens, SIZES[: len(losses)], losses, errors, known, over_sizes, (float(losses.min()), error, freedom))


def study(draw: np.random.Generator | None = None, error: float = 0.0, freedom: float = np.inf):
    """A baseline whose limits follow `BASE`, and a recipe whose asymptotes in size follow `BETTER`, with noise."""

    def noise(n: int) -> np.ndarray:
        return draw.normal(0, error, n) if draw else np.zeros(n)

    baseline = [budget(d, BASE([d / 1e6]) + noise(1), False, error, freedom) for d in BUDGETS]
    better = [budget(d, PowerLaw(0.05, 1.02, float(BETTER(d / 1e6)))(SIZES) + noise(4), True, error, freedom) for d in BUDGETS]
    return {"baseline": baseline, "better": better}


def true_ratio(d: float) -> float:
    return float(tokens_by_law(BASE.a, BASE.alpha, BASE.e, BETTER(d / 1e6))) * 1e6 / d


def test_a_law_is_inverted_and_what_it_never_reaches_takes_infinite_tokens():
    def by_law(*losses: float, a: float = 6.0) -> np.ndarray:
        return tokens_by_law(*(np.full(len(losses), number) for number in (a, 0.235, 1.92)), np.array(losses))

    assert by_law(float(BETTER(629.1)), 1.92, 1.5) == pytest.approx([629.1, np.inf, np.inf])
    assert by_law(3.0, 1.5, a=0.0) == pytest.approx([0, np.inf])
    assert by_law(np.nan) == [np.inf]
    assert tokens_by_law(6.0, 0.02, 1.9, np.array([1.9 + 1e-12])) == [np.inf]  # beyond any number


def test_without_noise_every_quantity_of_the_chain_is_that_of_the_known_laws():
    found = chain(study(error=1e-12), "baseline", resamples=50)
    for d in BUDGETS:
        assert found["better", d, "asymptote"].value == pytest.approx(float(BETTER(d / 1e6)), abs=1e-9)
        assert found["better", d, "data_efficiency"].value == pytest.approx(true_ratio(d), rel=1e-5)
        assert found["better", d, "data_efficiency_trained"].value < found["better", d, "data_efficiency"].value
        low, high = found["better", d, "data_efficiency"].interval()
        assert low == pytest.approx(high, rel=1e-4)
    assert found["better", None, "data_law"].value == pytest.approx(1.92, abs=1e-6)
    assert found["better", None, "data_law"].fitted.certified


def test_ninety_percent_intervals_cover_the_truth_in_85_to_95_percent_of_studies():
    """Of 60 simulated studies each; binomial noise widens what is let through. Whole studies: benchmarks/coverage.py."""
    draw, hits = np.random.default_rng(0), []
    d = float(BUDGETS[1])
    truths = {
        ("better", d, "asymptote"): float(BETTER(d / 1e6)),
        ("better", None, "data_law"): 1.92,
        ("better", d, "data_efficiency"): true_ratio(d),
    }
    for _ in range(60):
        found = chain(study(draw, 0.003), "baseline", resamples=300)
        ends = [(found[key].interval(), truth) for key, truth in truths.items()]
        hits.append([(low or 0) <= truth <= (np.inf if high is None else high) for (low, high), truth in ends])
    assert np.all(np.abs(np.mean(hits, axis=0) - 0.9) < 0.05 + 2 * 0.04), np.mean(hits, axis=0)


def test_sizes_of_equal_parameters_count_once_each():
    sizes, losses = np.array([0.1, 0.2, 0.2, 0.4, 0.8]), np.array([3.6, 3.42, 3.38, 3.25, 3.15])
    error = np.full(5, 0.01)
    given = Budget(BUDGETS[0], sizes, losses, error, np.full(5, np.inf), True, None)
    found = chain({"same": [given]}, "same", resamples=100)["same", BUDGETS[0], "asymptote"]
    twice = fit(PowerLaw, [0.1, 0.2, 0.4, 0.8], [3.6, 3.4, 3.25, 3.15], weights=[1, 2, 1, 1])
    assert found.value == pytest.approx(twice.law.e)


def test_residuals_beyond_the_noise_widen_the_interval_to_what_they_are():
    losses = PowerLaw(0.05, 1.02, 3.4)(SIZES) + np.array([0.02, -0.02, 0.02, -0.02])  # bent in no form
    key = ("bent", BUDGETS[0], "asymptote")

    def found(error: float):
        return chain({"bent": [budget(BUDGETS[0], losses, True, error)]}, "bent")[key]

    assert found(1e-4).misfit * 1e-4 == pytest.approx(float(np.sqrt(found(1e-4).fitted.objective)), rel=0.05)
    assert found(0.04).misfit == 1
    narrow, wide = (np.subtract(*found(error).interval()[::-1]) for error in (1e-4, float(found(1e-4).misfit * 1e-4)))
    assert narrow == pytest.approx(wide, rel=0.1)


def test_few_degrees_of_freedom_widen_an_interval():
    key = ("baseline", BUDGETS[0], "asymptote")
    known, estimated = (chain(study(error=0.01, freedom=f), "baseline")[key].interval() for f in (np.inf, 2.0))
    assert (known[1] - known[0]) / 2 == pytest.approx(1.645 * 0.01, rel=0.1)
    assert (estimated[1] - estimated[0]) / 2 == pytest.approx(2.92 * 0.01, rel=0.15)


def test_what_has_no_error_has_no_interval_and_what_has_no_limit_no_ratio():
    given = study(error=float("nan"))
    given["rising"] = [budget(BUDGETS[0], np.array([3.0, 3.1, 3.2, 3.3]), True, 0.01)]
    given["empty"] = [Budget(BUDGETS[0], *(np.array([]),) * 4, True, None)]
    found = chain(given, "baseline", resamples=50)
    ratio = found["better", BUDGETS[0], "data_efficiency"]
    assert ratio.value == pytest.approx(true_ratio(BUDGETS[0]), rel=1e-5) and ratio.interval() == (None, None)
    for recipe in ("rising", "empty"):
        assert found[recipe, BUDGETS[0], "asymptote"].value is None
        assert found[recipe, BUDGETS[0], "data_efficiency"].value is None
    assert chain({}, "baseline") == {}


def test_an_efficiency_that_may_be_of_any_size_has_no_upper_end():
    given = study(error=0.003)
    given["below"] = [budget(BUDGETS[0], np.array([2.1001]), False, 0.01)]
    ratio = chain(given, "baseline", resamples=200)["below", BUDGETS[0], "data_efficiency"]
    assert ratio.value is not None and ratio.undefined > 10
    assert ratio.interval()[1] is None


@pytest.mark.parametrize("error", [0.001, 0.01])
def test_resamples_take_the_rival_form_by_its_akaike_weight_so_that_an_exponential_truth_is_held_too(error):
    """The likelihood ratio of both fits, from residuals worked out here; with three points both fit, and it is one half."""
    sizes = np.array([0.15, 0.4, 1.0, 2.2])
    losses = 0.4 * np.exp(-sizes / 0.5) + 3.0 + error * np.array([0.4, -0.8, 0.5, -0.1])
    unknown = np.full(4, np.inf)
    whole = Budget(1e8, sizes, losses, np.full(4, error), unknown, True, None)
    found = chain({"recipe": [whole]}, None, resamples=4000)["recipe", 1e8, "asymptote"]
    chi_square = [np.sum((fit(form, sizes, losses).residuals / error) ** 2) for form in (PowerLaw, Exponential)]
    scale = max(1.0, min(chi_square))  # Birge's, with one degree of freedom
    assert found.rival_weight == pytest.approx(1 / (1 + np.exp((chi_square[1] - chi_square[0]) / scale / 2)), abs=1e-3)
    low, high = found.interval()
    assert low < 3.0 < high and np.mean(np.isnan(found.laws["alpha"])) == pytest.approx(found.rival_weight)
    three = budget(1e8, PowerLaw(0.05, 1.02, 3.4)(SIZES[:3]), True, error)
    exact = chain({"recipe": [three]}, None, resamples=100)["recipe", 1e8, "asymptote"]
    assert exact.rival_weight == pytest.approx(0.5, abs=0.02)


def test_an_exponential_law_is_inverted():
    falls = 0.4 * np.exp(-7.0 / 3.0) + 2.0
    a, alpha, e, tau = (np.full(2, value) for value in (0.4, np.nan, 2.0, 3.0))
    found = tokens_by_law(a, alpha, e, np.array([falls, 1.9]), tau)
    assert found == pytest.approx([7.0, np.inf])
