"""Audits of simulated tables: known flaws are named, a clean table has none, ranges hold the true ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataeff.errors import InputError
from dataeff.laws.audit import audit

A, ALPHA, E = 4.0, 0.35, 2.0  # of the baseline's best loss over D in 10,000 tokens
BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128)


def simulate(gain=2.0, budgets=BUDGETS, at=(2, 4, 8), sd=0.0, seed=0, seeds=2):
    """Return rows of a bowl in N, lr and weight decay around a power law; `better` is worth `gain` times the data."""
    draw, rows = np.random.default_rng(seed), []
    for recipe, worth, ds in (("standard", 1.0, budgets), ("better", gain, at)):
        for d in ds:
            for size in (-2, -1, 0, 1, 2):
                for lr in (1e-3, 3e-3, 1e-2):
                    for decay in (0.1, 0.3, 1.0):
                        bowl = 0.02 * size**2 + 0.02 * np.log(lr / 3e-3) ** 2 + 0.02 * np.log(decay / 0.3) ** 2
                        best = A * (d * worth) ** -ALPHA + E
                        row = {"recipe": recipe, "seed_tokens": d * 1e4, "parameters_total": 1e6 * d * 2.0**size}
                        row |= {"lr": lr, "weight_decay": decay, "epochs": 8 * 2.0**size}
                        rows += [row | {"val_loss": best + bowl + sd * draw.normal()} for _ in range(seeds)]
    return rows


def names(audited):
    return {finding["name"] for finding in audited["findings"]}


def text(audited, name):
    (finding,) = [finding["text"] for finding in audited["findings"] if finding["name"] == name]
    return finding


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_table_has_no_flaw_and_holds(seed):
    audited = audit(simulate(sd=0.002, seed=seed), "standard")
    assert audited["findings"] == [] and audited["verdict"] == "holds"
    assert audited["noise_sd"] == pytest.approx(0.002, rel=0.2)
    assert [ratio["low"] for ratio in audited["ratios"]] == pytest.approx([2, 2, 2], rel=0.03)


@pytest.mark.parametrize("gain", [1.3, 1.7, 2.5, 3.3])
def test_the_range_of_the_rules_holds_the_true_ratio(gain):
    for ratio in audit(simulate(gain), "standard")["ratios"]:
        assert ratio["low"] <= gain * (1 + 1e-6) and ratio["high"] >= gain * (1 - 1e-6)
        assert ratio["high"] > 1.005 * ratio["low"]  # a chord lies above a convex law


def test_the_gain_that_halves_a_ratio_is_that_of_the_closed_form():
    """A law that falls by g everywhere gives half the ratio r where A (r d / 2)^-alpha - g = A (r d)^-alpha."""
    for d, ratio in zip((2, 4, 8), audit(simulate(2.0), "standard")["ratios"], strict=True):
        (law,) = [rule for rule in ratio["rules"] if rule["rule"] == "power law"]
        assert law["ratio"] == pytest.approx(2.0, rel=1e-6)
        assert law["halved_by"] == pytest.approx(A * d**-ALPHA - A * (2 * d) ** -ALPHA, rel=1e-5)
        assert ratio["halved_by"] == pytest.approx(law["halved_by"], rel=0.01)


def test_what_brings_a_small_ratio_to_1_counts_though_it_does_not_halve_it():
    """1.05 times the data is a gain of A d^-alpha (1 - 1.05^-alpha): 0.026 nats at d = 8."""
    (ratio,) = audit(simulate(1.05, at=(8,), sd=0.02), "standard")["ratios"]
    assert ratio["halved_by"] > 0.4 and ratio["verdict"] == "fragile" and "noise" in ratio["reason"]
    (ratio,) = audit(simulate(1.05, at=(8,)), "standard")["ratios"]
    assert ratio["verdict"] == "holds" and ratio["lost_by"] == pytest.approx(A * 8**-ALPHA * (1 - 1.05**-ALPHA), rel=0.01)


def test_too_few_budgets_and_one_seed_are_named():
    audited = audit(simulate(budgets=(1, 4, 16), at=(2,), seeds=1), "standard")
    assert {"few_points", "one_seed"} <= names(audited)
    assert "3" in text(audited, "few_points") and audited["law"]["degrees_of_freedom"] == 0
    assert audited["noise_sd"] is None


def test_standard_errors_say_the_noise_of_one_seed():
    audited = audit([row | {"standard_error": 0.004} for row in simulate(seeds=1)], "standard")
    assert audited["noise_sd"] == pytest.approx(0.004) and "one_seed" not in names(audited)


def test_a_baseline_at_the_edge_of_its_sizes_or_of_its_grid_is_named_with_what_the_last_step_gained():
    audited = audit([row for row in simulate() if row["parameters_total"] <= 50 * row["seed_tokens"]], "standard")
    assert names(audited) == {"size_edge"}
    (edge,) = audited["findings"]
    assert "largest" in edge["text"] and edge["worth"] == pytest.approx(0.02 * (4 - 1))
    audited = audit([row for row in simulate() if row["lr"] < 1e-2], "standard")
    assert names(audited) == {"grid_edge"} and "lr is the largest" in text(audited, "grid_edge")


def test_an_edge_beyond_which_nothing_can_be_tried_is_no_flaw():
    rows = [row | {"weight_decay": (row["weight_decay"] - 0.3) * (row["weight_decay"] > 0.2)} for row in simulate()]
    assert "grid_edge" not in names(audit([row for row in rows if row["weight_decay"] >= 0], "standard"))


def test_a_diverged_neighbour_is_worse_and_not_missing():
    rows = [row | ({"val_loss": None} if row["lr"] == 1e-2 else {}) for row in simulate()]
    assert audit(rows, "standard")["findings"] == []


def test_a_budget_where_all_diverged_counts_as_none():
    """Its losses are infinite: differences of them would be no number, and no flaw would be seen."""
    rows = [row | ({"val_loss": math.nan} if row["seed_tokens"] == 2e4 else {}) for row in simulate()]
    audited = audit(rows, "standard")
    assert audited["findings"] == [] and len(audited["ratios"]) == 2 and len(audited["baseline"]) == 7


def test_members_of_an_ensemble_are_no_points_that_were_tuned():
    rows = [row | {"members": 1} for row in simulate()]
    more = [row | {"members": k} for row in rows for k in (2, 3, 4) if row["recipe"] == "better"]
    assert audit(rows + more, "standard")["findings"] == []


def test_coarse_budgets_between_which_rules_differ_by_2_make_a_ratio_fragile():
    audited = audit(simulate(6.0, budgets=(1, 32, 64, 128, 256, 512), at=(1,)), "standard")
    (ratio,) = audited["ratios"]
    assert ratio["low"] < 6.01 and ratio["high"] > 2 * ratio["low"] and ratio["reason"] == "rules_disagree"


def test_one_size_of_the_baseline_makes_ratios_fragile():
    rows = [r for r in simulate() if r["recipe"] == "better" or r["parameters_total"] == 100 * r["seed_tokens"]]
    audited = audit(rows, "standard")
    assert "only" in text(audited, "size_edge") and audited["verdict"] == "fragile"


def test_a_ratio_beyond_the_budgets_is_extrapolated_and_interpolation_says_why_it_has_none():
    audited = audit(simulate(4.0, budgets=(1, 2, 4, 8, 16), at=(2, 8)), "standard")
    within, beyond = audited["ratios"]
    assert "extrapolated" not in within["findings"] and "extrapolated" in beyond["findings"]
    assert "better at D = 80,000" in text(audited, "extrapolated") and "20,000" not in text(audited, "extrapolated")
    assert "outside" in beyond["rules"][0]["reason"] and beyond["rules"][0]["ratio"] is None
    assert beyond["low"] <= 4.0001 and beyond["high"] >= 3.9999 and audited["verdict"] == "holds"


def test_beyond_the_budgets_a_law_without_freedom_makes_a_ratio_fragile():
    (ratio,) = audit(simulate(4.0, budgets=(1, 2, 4, 8), at=(8,)), "standard")["ratios"]
    assert ratio["verdict"] == "fragile" and "extrapolated, few_points" in ratio["reason"]


def test_a_strong_result_over_an_untuned_baseline_is_fragile():
    tuned = simulate(8.0, at=(2, 4))
    settings = [(1e-3, 0.1), (1e-3, 0.3), (1e-3, 1.0), (3e-3, 0.3)]
    audited = audit([r for r in tuned if r["recipe"] == "better" or (r["lr"], r["weight_decay"]) in settings], "standard")
    assert "untuned_baseline" in names(audited) and "(45 points, not 20)" in text(audited, "untuned_baseline")
    assert all(r["verdict"] == "fragile" and "untuned_baseline" in r["reason"] for r in audited["ratios"])


def test_a_baseline_whose_search_is_not_shown_is_fragile():
    rows = [row for row in simulate(8.0, at=(2, 4)) if (row["lr"], row["weight_decay"]) == (3e-3, 0.3)]
    audited = audit(rows, "standard")
    assert names(audited) == {"tuning_unknown", "fragile"} and audited["verdict"] == "fragile"


def test_an_axis_that_the_baseline_alone_holds_fixed_is_worth_what_it_gained_elsewhere():
    rows = [row for row in simulate(1.2) if row["recipe"] == "better" or row["weight_decay"] == 0.1]
    audited = audit(rows, "standard")
    assert "weight_decay" in text(audited, "axis_fixed")
    for ratio in audited["ratios"]:
        assert ratio["untried"] == {"weight_decay": pytest.approx(0.02 * np.log(3) ** 2)} and "axis_fixed" in ratio["findings"]


def test_an_axis_fixed_where_the_recipe_is_best_is_no_flaw():
    rows = [row for row in simulate() if row["recipe"] == "better" or row["weight_decay"] == 0.3]
    assert "axis_fixed" not in names(audit(rows, "standard"))


def test_laws_that_disagree_beyond_the_budgets_are_named():
    """Three budgets leave no freedom to reject a rival: a law without floor and an exponential fit them too."""
    audited = audit(simulate(8.0, (1, 2, 4), (4,)), "standard")
    (ratio,) = audited["ratios"]
    assert "rules_disagree" in names(audited) and ratio["high"] > 1.25 * ratio["low"] and ratio["verdict"] == "fragile"


def test_a_loss_below_the_limit_of_a_law_is_never_reached():
    rows = simulate(2.0, at=(8,)) + [{"recipe": "magic", "seed_tokens": 1e5, "parameters_total": 1e6, "val_loss": 1.9}]
    magic = audit(rows, "standard")["ratios"][1]
    (law,) = [rule for rule in magic["rules"] if rule["rule"] == "power law"]
    assert law["ratio"] == math.inf and "limit is 2.0000" in law["reason"]


def test_noise_that_halves_a_ratio_makes_it_fragile():
    audited = audit(simulate(2.0, at=(8,), sd=0.5, seeds=8), "standard")
    assert audited["verdict"] == "fragile" and "noise" in audited["ratios"][0]["reason"]


def test_a_recipe_that_is_worse_than_the_baseline_gains_nothing_however_untuned_that_is():
    rows = [row for row in simulate(0.5) if row["recipe"] == "better" or row["lr"] == 1e-3]
    assert all(ratio["high"] < 1 and "no gain" in ratio["reason"] for ratio in audit(rows, "standard")["ratios"])


def test_a_stated_law_goes_through_the_last_budget_of_the_baseline():
    stated = {"law_alpha": 0.35, "law_e": 2.0}
    rows = [row | stated for row in simulate(2.0, budgets=(4,), at=(4,))]
    (ratio,) = audit(rows, "standard")["ratios"]
    assert ratio["low"] == ratio["high"] == pytest.approx(2.0)
    assert ratio["verdict"] == "fragile" and "few_points" in ratio["reason"]


@pytest.mark.parametrize(
    ("change", "baseline", "said"),
    [
        ({}, "standart", "did you mean 'standard'"),
        ({"recipe": "standard"}, "standard", "another recipe"),
        ({"seed_tokens": 0}, "standard", "row 1 "),
        ({"val_loss": -1.0}, "standard", "not below 0"),
        ({"recipe": None}, "standard", "needs a recipe"),
        ({"val_loss": None}, "standard", "need losses"),
    ],
)
def test_what_is_no_table_of_losses_is_refused(change, baseline, said):
    with pytest.raises(InputError, match=said):
        audit([row | change for row in simulate()], baseline)
