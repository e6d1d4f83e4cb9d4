"""The answer: its sentence in every form, its tables, and the caveats that decide first."""

from __future__ import annotations

import pytest

from dataeff.errors import NotFoundError
from dataeff.laws.forms import PowerLaw
from dataeff.reports.answer import study_answer

BASE = PowerLaw(6.0, 0.24, 1.9)  # over D in 1e6 tokens
SIZE = 10**9


def baseline(recorded, millions=(200, 400, 800), noise=0.002, law=BASE):
    for d in millions:
        loss = float(law(d))
        repeated = [((0,), loss + noise)] if noise else []
        recorded.cell({(0,): loss - noise / 2}, limit="best", seed_tokens=d * 10**6, replicates=repeated)


def single(recorded, recipe, worth, millions=800, law=BASE, **more):
    """A recipe whose best single model at D needs `worth` times the tokens of the baseline."""
    return recorded.cell({(0,): float(law(worth * millions))}, recipe=recipe, limit="best", seed_tokens=millions * 10**6, **more)


def ensemble(recorded, recipe, worth, millions=800, limit="K", members=4):
    cell = recorded.cell({}, recipe=recipe, limit=limit, members=members, seed_tokens=millions * 10**6)
    all_of_them = float(BASE(worth * millions))

    def losses(subset):
        return all_of_them + 0.2 * (len(subset) ** -0.9 - members**-0.9)

    recorded.ensemble(cell, (0,), losses, members)
    return cell


def answered(recorded) -> dict:
    recorded.fit()
    return study_answer(recorded.connection, "study")


def sentence(recorded) -> str:
    return answered(recorded)["sentence"]


def test_what_was_reached_comes_first_with_its_interval_and_the_best_single_model(recorded):
    baseline(recorded)
    single(recorded, "better", 1.2, 400)
    ensemble(recorded, "ensemble", 1.6, 400)
    assert sentence(recorded).startswith("Four models together (ensemble) were worth 1.6x the data (1.")
    assert sentence(recorded).endswith(" at 400,000,000 tokens of one draw; the best single model (better) 1.2x.")


def test_a_ratio_beyond_the_baselines_budgets_says_so_wherever_it_stands(recorded):
    baseline(recorded)
    ensemble(recorded, "ensemble", 1.6)
    answer = answered(recorded)
    assert "extrapolated) at 800,000,000 tokens" in answer["sentence"]
    (trained,) = [row for row in answer["trained"][1] if row[0] == "ensemble"]
    assert trained[1:4] == ("800,000,000", f"{BASE(1280):.3f}", "4 x n1000000000") and "extrapolated" in trained[4]
    (limit,) = answer["limits"][1]
    assert "extrapolated" in limit[3] and limit[4].startswith("K -> ∞ from 4, D ")
    assert not any("extrapolated" in row[4] for row in answer["trained"][1] if row[1] == "200,000,000")


def test_a_ratio_too_far_beyond_them_is_given_as_a_bound(recorded):
    baseline(recorded)
    single(recorded, "magic", 1e5)
    assert "was worth over 100x the data" in sentence(recorded) and "extrapolated" in sentence(recorded)


def test_a_tie_and_a_gain_that_may_be_none_are_said(recorded):
    baseline(recorded, noise=0.1)
    single(recorded, "better", 1.01, replicates=[((0,), float(BASE(1.01 * 800)) + 0.2), ((0,), float(BASE(1.01 * 800)) - 0.2)])
    ensemble(recorded, "ensemble", 1.01)
    assert "tied with" in sentence(recorded)
    assert sentence(recorded).endswith("That may be no gain: the interval holds 1.")


def test_where_the_baseline_is_best_no_ratio_is_given(recorded):
    baseline(recorded)
    single(recorded, "worse", 0.5)
    assert sentence(recorded).endswith(" at 800,000,000 tokens. That is the baseline: no other recipe was better.")


def test_the_largest_budget_is_one_at_which_something_is_compared(recorded):
    baseline(recorded)
    single(recorded, "better", 1.5, 200)
    assert "(better) was worth 1.5x the data" in sentence(recorded) and "200,000,000 tokens" in sentence(recorded)
    assert "extrapolated" not in sentence(recorded)


def test_without_a_law_of_the_baseline_losses_are_compared_and_the_reason_given(recorded):
    baseline(recorded, (200,), 0)
    ensemble(recorded, "ensemble", 2, 200)
    single(recorded, "better", 1.5, 200)
    assert sentence(recorded) == (
        f"Four models together (ensemble) reached {BASE(400):.3f} nats/token at 200,000,000 tokens; the best single model "
        f"(better) {BASE(300):.3f} nats/token; the baseline (standard) {BASE(200):.3f} nats/token. What that is worth in data is "
        "not known: the baseline has no data law: a law with three parameters needs 3 points; there is 1."
    )


def test_a_loss_that_the_baseline_never_reaches_and_a_study_without_a_baseline_say_so(recorded):
    baseline(recorded)
    recorded.cell({(0,): 1.5}, recipe="magic", limit="best", seed_tokens=800 * 10**6)
    assert "not known: the baseline's law never reaches this loss: its limit is 1.9" in sentence(recorded)
    recorded.connection.execute("UPDATE study SET baseline = NULL")
    assert sentence(recorded).endswith("not known: the study names no baseline.")


def test_one_recipe_and_a_study_that_has_not_begun_have_a_sentence_too(recorded):
    recorded.cell({}, limit="best")
    assert sentence(recorded) == "No run has finished yet: there is no answer."
    recorded.trial("study/standard/1000000/1000000000", "search", (0,), 3.0)
    assert sentence(recorded) == (
        "The best single model (standard) reached 3.000 nats/token at 1,000,000 tokens. There is no other recipe to compare it "
        "with."
    )


def test_the_table_of_what_was_trained_has_every_recipe_the_best_first(recorded):
    baseline(recorded)
    single(recorded, "better", 1.5)
    single(recorded, "without a limit", 1.2, parameters=SIZE)
    recorded.connection.execute("UPDATE cell SET recipe_limit = 'N' WHERE recipe = 'without a limit'")
    answer = answered(recorded)
    at_largest = [row[0] for row in answer["trained"][1] if row[1] == "800,000,000"]
    assert at_largest == ["better", "without a limit", "standard"]
    (limit,) = answer["limits"][1]
    assert limit[2:4] == ("-", "-") and limit[4] == "no limit: a law with three parameters needs 3 points; there is 1"


def test_the_baselines_own_law_is_the_first_caveat(recorded):
    baseline(recorded, law=PowerLaw(6.0, 0.24, 0.0), noise=0.05)
    for n, excess in ((1, 0.1), (2, 0.05), (4, 0.025)):
        single(recorded, "better", 1.5, parameters=n * SIZE)
        loss = float(BASE(1200)) + excess
        recorded.connection.execute("UPDATE run SET val_loss = $1 WHERE run_id = (SELECT max(run_id) FROM run)", [loss])
    recorded.connection.execute("UPDATE cell SET recipe_limit = 'N' WHERE recipe = 'better'")
    first, second, *more = answered(recorded)["caveats"]
    assert first.startswith("The baseline's law over D (standard), under every ratio: ") and "show no limit" in first
    assert "as many points as parameters" in first
    assert second.startswith("better's law over N at D = 800,000,000: as many points as parameters")
    assert any(line.startswith("Run-to-run noise") for line in more) and more[-1].startswith("Losses in nats/token")


def test_stale_numbers_are_shown_and_the_caveats_begin_with_that(recorded):
    baseline(recorded)
    single(recorded, "better", 1.5)
    before = answered(recorded)
    recorded.trial("study/better/800000000/1000000000", "replicate", (0,), 3.0)
    after = study_answer(recorded.connection, "study")
    assert after["trained"][1][0][4] == before["trained"][1][0][4] != "-"
    assert after["caveats"][0] == "Runs were added since the laws were fitted: `dataeff refresh`."


def test_cells_of_one_reason_are_one_caveat(recorded):
    for n in range(1, 7):
        recorded.cell({(0,): 3.0 + n, (1,): 3.5 + n}, {"lr": [1e-3, 3e-3]}, limit="best", parameters=n * SIZE)
    lines = [line for line in answered(recorded)["caveats"] if "lr lower" in line]
    assert lines == ["  boundary: cells of standard (6): lr lower"]


def test_a_study_that_is_not_recorded_has_no_answer(recorded):
    recorded.study("study")
    with pytest.raises(NotFoundError, match="did you mean 'study'"):
        study_answer(recorded.connection, "stdy2")
