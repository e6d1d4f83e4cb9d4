"""The views `noise`, `asymptote`, `data_law`, `data_efficiency` and their macros, against scipy and known laws."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import curve_fit

from dataeff.laws.fit import fit
from dataeff.laws.forms import PowerLaw
from dataeff.study.fits import ONE_DRAW

N = np.array([0.15, 0.3, 0.6, 1.4])


def law(x, a, alpha, e):
    return a * np.power(x, -alpha) + e


def sql_fits(recorded, problems):
    """Fit every problem by the macro in one query, as a view would."""
    rows = [(i, float(x), float(y)) for i, (xs, ys) in enumerate(problems) for x, y in zip(xs, ys, strict=True)]
    recorded.connection.execute("CREATE TEMP TABLE point AS SELECT unnest($1) AS i, unnest($2) AS x, unnest($3) AS y",
                                [list(column) for column in zip(*rows, strict=True)])  # fmt: skip
    found = recorded.rows("SELECT power_law(list(x), list(y)) AS fit FROM point GROUP BY i ORDER BY i")
    return [row["fit"] for row in found]


def scipy_limit(x, y):
    """Least squares by curve_fit from many starts."""
    best = None
    for a in (0.01, 0.3, 10.0):
        for alpha in (0.1, 0.3, 0.8, 2.0):
            for e in (0.3, 0.7, 0.99):
                try:
                    found, _ = curve_fit(law, x, y, p0=(a, alpha, e * min(y)), bounds=([0, 0.02, 0], [np.inf, 3, np.inf]),
                                         xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=3000)  # fmt: skip
                except RuntimeError:
                    continue
                sse = float(np.sum((law(x, *found) - y) ** 2))
                if best is None or sse < best[0]:
                    best = (sse, found)
    return best


def known_problems():
    rng = np.random.default_rng(0)
    for alpha in (0.3, 0.5, 0.8, 1.02, 1.5):
        for a, e in ((0.05, 3.43), (0.3, 2.0)):
            yield N, law(N, a, alpha, e)
    for alpha in (0.2, 0.235, 0.3, 0.4):
        for count in (3, 4, 6, 8):
            x = 209.7152 * 2.0 ** np.arange(count)
            yield x, law(x, 6.0, alpha, 1.92)
    for _ in range(12):
        x = np.geomspace(0.1, 3, 7)
        yield x, law(x, rng.uniform(0.1, 0.5), rng.uniform(0.4, 1.2), rng.uniform(2, 4)) + rng.normal(0, 0.003, 7)


def test_the_sql_fit_is_the_exact_least_squares_optimum_of_laws_fit(recorded):
    problems = list(known_problems())
    for (x, y), found in zip(problems, sql_fits(recorded, problems), strict=True):
        exact = fit(PowerLaw, x, y)
        assert found["e"] == pytest.approx(exact.law.e, abs=1e-4)
        assert found["alpha"] == pytest.approx(exact.law.alpha, rel=1e-3)
        assert found["a"] == pytest.approx(exact.law.a, rel=1e-3)
        assert found["sse"] == pytest.approx(exact.objective, rel=1e-6, abs=1e-11)


@pytest.mark.filterwarnings("ignore::scipy.optimize.OptimizeWarning")  # of covariances, which are not used
def test_the_sql_limit_agrees_with_curve_fit_from_many_starts(recorded):
    problems = list(known_problems())[::3]
    compared = 0
    for (x, y), found in zip(problems, sql_fits(recorded, problems), strict=True):
        sse, (_, alpha, e) = scipy_limit(x, y)
        assert found["sse"] <= sse + 1e-11
        if 0.021 < alpha < 2.99 and e > 1e-6 and sse - found["sse"] < 1e-10:
            compared += 1
            assert found["e"] == pytest.approx(e, abs=1e-3)
    assert compared >= len(problems) - 2


def test_a_limit_that_is_none_says_why(recorded):
    x = [0.1, 0.2, 0.4, 0.8]
    problems = {
        "needs 3 points; there are 2": (x[:2], [3, 2]),
        "needs 3 points; there is 1": ([1, 1, 1], [3, 2, 1]),
        "do not fall": (x, [3.0, 3.1, 3.2, 3.3]),
        "lower bound 0.02": (x, [4 - 0.01 * np.log(v) for v in x]),
        "upper bound 3": (x, [4.0, 3.0, 3.0, 3.0]),
        "limit is at its bound 0": (x, [0.5 * v**-0.5 for v in x[:3]] + [0.5 * 0.8**-0.5 - 0.01]),
    }
    for said, found in zip(problems, sql_fits(recorded, problems.values()), strict=True):
        assert said in found["reason"]


def test_pairs_with_a_null_are_left_out_of_a_fit(recorded):
    y = law(N, 0.3, 0.7, 3.0)
    recorded.connection.execute("CREATE TEMP TABLE p AS SELECT unnest($1) AS x, unnest($2) AS y", [[*N, 9.0], [*y, None]])
    found = recorded.rows("SELECT power_law(list(x), list(y)) AS fit FROM p")[0]["fit"]
    assert (found["points"], found["reason"]) == (4, None)
    assert found["e"] == pytest.approx(3.0, abs=1e-4)


def regularized(recorded, seed_tokens=1_000_000, limit=3.43, **keywords):
    for n in (150, 300, 600, 1400):
        loss = law(n / 1000, 0.05, 1.02, limit)
        recorded.cell({(0,): loss}, recipe="regularized", parameters=n * 10**6, seed_tokens=seed_tokens, **keywords)


def test_the_asymptote_of_a_study_is_the_limit_of_its_law_over_parameters(recorded):
    regularized(recorded)
    unfitted = "SELECT limit_loss, reason, stale FROM asymptote"
    assert recorded.connection.execute(unfitted).fetchall() == [(None, "not fitted yet; `dataeff refresh` does it", True)]
    (row,) = recorded.rows("FROM asymptote")
    assert (row["kind"], row["variable"], row["points"], row["cells"], row["certified"]) == (
        "asymptote",
        "parameters_total",
        4,
        4,
        4,
    )
    assert (row["limit_loss"], row["a"], row["alpha"]) == pytest.approx((3.43, 0.05, 1.02), abs=1e-5)
    assert row["e_low"] is None
    assert "more than one seed" in row["interval_reason"]


def test_the_published_limit_of_the_standard_recipe_is_its_best_over_parameters(recorded):
    published = {150: 3.83752, 300: 3.78538, 600: 3.74974, 1400: 3.76432}
    for n, loss in published.items():
        recorded.cell({(0,): loss}, limit="best", parameters=n * 10**6, seed_tokens=209_715_200)
    (row,) = recorded.rows("FROM asymptote")
    assert (row["kind"], row["limit_loss"], row["reason"]) == ("best over N", 3.74974, None)


def test_a_cell_without_a_finished_run_is_counted_and_not_fitted(recorded):
    regularized(recorded)
    recorded.cell({(0,): np.inf}, recipe="regularized", parameters=3 * 10**9)
    (row,) = recorded.rows("FROM asymptote")
    assert (row["cells"], row["points"], row["open"]) == (5, 4, 1)
    assert recorded.rows("SELECT reason FROM best_run WHERE parameters_total = 3e9") == [
        {"reason": "no finite loss: all 1 runs of 1 points diverged"}
    ]


def test_noise_pools_the_replicated_points_of_a_recipe(recorded):
    recorded.cell({(0,): 3.0}, parameters=1, replicates=[((0,), 3.1), ((0,), 3.3)])
    recorded.cell({(0,): 2.0}, parameters=2, replicates=[((0,), 2.2)])
    recorded.cell({(0,): 2.0}, recipe="wild", replicates=[((0,), 9.0)])
    recorded.cell({(0,): 2.0}, recipe="once")
    once, row, wild = recorded.rows("FROM noise ORDER BY recipe")
    pooled = (2 * statistics.variance([3.0, 3.1, 3.3]) + statistics.variance([2.0, 2.2])) / 3
    assert row["noise_sd"] == pytest.approx(pooled**0.5)
    assert (row["degrees_of_freedom"], row["points"], row["reason"]) == (3, 2, None)
    assert wild["noise_sd"] == pytest.approx(statistics.stdev([2.0, 9.0]))
    assert once["noise_sd"] is None and once["reason"] == "no point was run with more than one seed"


def test_the_best_over_parameters_has_the_interval_of_a_mean_of_the_runs_that_did_not_choose_it(recorded):
    losses = [3.0, 3.1, 3.2, 3.3]
    recorded.cell({(0,): 2.95}, limit="best", replicates=[((0,), loss) for loss in losses])
    (row,) = recorded.rows("FROM asymptote")
    wanted = stats.t.interval(0.9, 4, 3.15, statistics.stdev([2.95, *losses]) / 2)
    assert row["limit_loss"] == row["best_trained"] == pytest.approx(3.15)
    assert (row["e_low"], row["e_high"]) == pytest.approx(wanted, abs=0.03)  # of 2,000 resamples


def test_data_efficiency_inverts_the_known_data_law_of_the_baseline(recorded):
    baseline = PowerLaw(6.0, 0.24, 1.9)
    for millions in (200, 400, 800, 1600):
        recorded.cell({(0,): float(baseline(millions))}, limit="best", seed_tokens=millions * 10**6)
        regularized(recorded, millions * 10**6, limit=float(baseline(2.5 * millions)))
    (fitted,) = recorded.rows("FROM data_law WHERE recipe = 'standard'")
    assert (fitted["a"], fitted["alpha"], fitted["limit_loss"]) == pytest.approx((6.0, 0.24, 1.9), rel=1e-4)
    for row in recorded.rows("FROM data_efficiency"):
        expected = 1 if row["recipe"] == "standard" else 2.5
        assert row["data_efficiency"] == pytest.approx(expected, rel=1e-3)
        assert row["tokens_needed"] == pytest.approx(expected * row["seed_tokens"], rel=1e-3)
        assert row["reason"] is None


def test_data_efficiency_has_an_interval_that_brackets_it_when_noise_is_known(recorded):
    baseline = PowerLaw(6.0, 0.24, 1.9)
    for millions in (200, 400, 800, 1600):  # with three an exponential law would fit as well
        loss = float(baseline(millions))
        same = [((0,), loss), ((0,), loss + 0.001)]
        recorded.cell({(0,): loss}, limit="best", seed_tokens=millions * 10**6, replicates=same)
        regularized(recorded, millions * 10**6, limit=float(baseline(2.5 * millions)))
    for size in (150, 300, 600, 1400):
        for loss in (0, 0.001):
            loss += law(size / 1e3, 0.05, 1.02, float(baseline(500)))
            recorded.trial(f"study/regularized/200000000/{size}000000", "replicate", (0,), loss)
    for row in recorded.rows("FROM data_efficiency"):
        assert row["data_efficiency_low"] <= row["data_efficiency"] <= row["data_efficiency_high"]
        if row["recipe"] == "regularized":
            assert row["data_efficiency_high"] > 1.001 * row["data_efficiency_low"]
            assert row["data_efficiency_trained_low"] < row["data_efficiency_trained"] < row["data_efficiency_trained_high"]
        else:  # its budgets lie near its law, whatever the noise
            assert row["data_efficiency_low"] == pytest.approx(row["data_efficiency_high"], rel=0.05)
        assert row["interval_reason"].endswith(ONE_DRAW)


def test_a_loss_below_the_baselines_limit_has_no_data_efficiency_and_says_so(recorded):
    for millions in (200, 400, 800):
        recorded.cell({(0,): law(millions, 6.0, 0.24, 1.9)}, limit="best", seed_tokens=millions * 10**6)
    recorded.cell({(0,): 1.5}, limit="best", recipe="magic", seed_tokens=200 * 10**6)
    recorded.cell({(0,): 1.5}, recipe="short", seed_tokens=200 * 10**6)
    rows = {row["recipe"]: row for row in recorded.rows("FROM data_efficiency WHERE recipe <> 'standard'")}
    assert rows["magic"]["data_efficiency"] is None
    assert "the baseline's law never reaches this loss" in rows["magic"]["reason"]
    assert "this recipe has no limit here: a law with three parameters needs 3 points" in rows["short"]["reason"]


def test_without_three_budgets_the_baseline_has_no_data_law_and_nothing_an_efficiency(recorded):
    recorded.cell({(0,): 3.0}, limit="best")
    (row,) = recorded.rows("FROM data_efficiency")
    assert row["data_efficiency"] is None
    assert row["reason"].startswith("the baseline has no data law")
