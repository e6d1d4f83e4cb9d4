"""The views over ensembles, against known laws, `dataeff.laws.fit` and the search's own certificate."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from scipy import stats

from dataeff.laws.fit import fit
from dataeff.laws.forms import PowerLaw
from dataeff.search.coordinate_descent import certificate
from dataeff.specs.grid import Grid

LR = {"lr": [1e-3, 3e-3, 1e-2]}


def in_k(limit: float, a: float = 0.2, alpha: float = 0.9):
    """Losses of subsets that follow a law in their number of members."""
    return lambda subset: limit + a * len(subset) ** -alpha


def noisy(seed: int, limit: float = 3.0, spread: float = 0.004):
    """Such losses of members of which some are better than others."""
    quality = [random.Random(f"{seed} {place}").gauss(0, spread) for place in range(8)]
    return lambda subset: in_k(limit)(subset) + sum(quality[place] for place in subset) / len(subset)


def curve(losses, places) -> tuple[list[int], list[float]]:
    """K and the mean loss over all subsets of K of these places."""
    ks = list(range(1, len(places) + 1))
    return ks, [sum(map(losses, itertools.combinations(places, k))) / math.comb(len(places), k) for k in ks]


def tuned(recorded, losses, members=4, limit="K", **keywords) -> str:
    """Record a cell that minimises the limit; `losses`: by coordinates, from subsets to losses."""
    cell = recorded.cell({}, limit=limit, objective="K", members=members, **keywords)
    for coordinates, of_subset in losses.items():
        recorded.ensemble(cell, coordinates, of_subset, members)
    return cell


@pytest.mark.parametrize("averaging", ["logits", "probabilities", "weights"])
def test_losses_that_follow_a_law_in_members_give_back_its_limit(recorded, averaging):
    recorded.ensemble(recorded.cell({}), (0,), in_k(3.2, 0.3, 0.95), 5, averaging=averaging)
    (row,) = recorded.rows("FROM ensemble_asymptote")
    assert (row["limit_loss"], row["a"], row["alpha"]) == pytest.approx((3.2, 0.3, 0.95), abs=1e-4)
    assert (row["averaging"], row["members"], row["coordinates"]) == (averaging, 5, [0])
    assert row["val_loss"] == pytest.approx(3.2 + 0.3 * 5**-0.95)


def test_the_value_of_a_point_is_the_loss_of_all_its_members(recorded):
    cell = recorded.cell({}, axes={"lr": list(range(1, 31))}, objective="K", members=4)
    for i in range(30):
        recorded.ensemble(cell, (i,), noisy(i, spread=0.05 if i % 3 == 0 else 0.004), 3 + i % 3)
    found = {row["coordinates"][0]: row["objective_loss"] for row in recorded.rows("FROM grid_point")}
    for i in range(30):
        assert found[i] == noisy(i, spread=0.05 if i % 3 == 0 else 0.004)(tuple(range(3 + i % 3)))


@pytest.mark.parametrize("members", [4, 5])
def test_the_interval_is_that_of_the_jackknife_over_members(recorded, members):
    losses = noisy(1)
    recorded.ensemble(recorded.cell({}), (0,), losses, members)
    (row,) = recorded.rows("FROM ensemble_asymptote")
    limits = [
        fit(PowerLaw, *curve(losses, [place for place in range(members) if place != left_out])).law.e
        for left_out in range(members)
    ]
    mean = sum(limits) / members
    error = math.sqrt((members - 1) / members * sum((limit - mean) ** 2 for limit in limits))
    assert row["standard_error"] == pytest.approx(error, rel=1e-3)
    wanted = stats.t.interval(0.9, members - 1, row["e"], error)  # z covers 81% with four members, t 90% (benchmarks/laws.py)
    assert (row["e_low"], row["e_high"]) == pytest.approx(wanted, abs=1e-5)
    assert (row["interval_reason"], row["reason"]) == (None, None)


def test_what_has_no_limit_or_no_interval_says_why(recorded):
    def not_finite(subset):
        return None if 1 in subset else 3.0

    cell = recorded.cell({}, axes={"lr": [1, 2, 3, 4, 5]})
    recorded.ensemble(cell, (0,), in_k(3.0), 3)
    recorded.ensemble(cell, (1,), in_k(3.0), 2)
    recorded.ensemble(cell, (2,), lambda subset: 3.0 + 0.5 * len(subset), 4, averaging="weights")
    recorded.ensemble(cell, (3,), not_finite, 4)
    recorded.ensemble(cell, (4,), in_k(3.0), 4, averaging="weights")
    rows = {row["coordinates"][0]: row for row in recorded.rows("FROM ensemble_asymptote")}
    assert rows[0]["limit_loss"] == pytest.approx(3.0, abs=1e-4)
    assert rows[0]["interval_reason"] == "leaving a member out needs 4 members; there are 3"
    assert "needs 3 points; there are 2" in rows[1]["reason"]
    assert rows[2]["limit_loss"] is None
    assert "do not fall" in rows[2]["reason"]
    assert (rows[3]["val_loss"], rows[3]["limit_loss"]) == (None, None)
    assert rows[3]["reason"] == "the loss of its members is not finite"
    assert rows[4]["interval_reason"] == "no subsets without the first member were evaluated"
    assert all(row["e_low"] is None for row in rows.values())


def test_the_certificate_of_limits_is_that_of_the_search(recorded):
    draw = random.Random(0)
    grid = Grid({"lr": (1e-3, 3e-3, 1e-2), "weight_decay": (0.0,)})
    tried = {}
    for i in range(20):
        points = {point: draw.randrange(10**6) for point in itertools.product(range(3), range(1)) if draw.random() < 0.95}
        members = draw.choice([2, 4])
        cell = tuned(
            recorded,
            {point: noisy(seed, 3 + seed % 5 / 9) for point, seed in points.items()},
            members=members,
            axes={name: list(values) for name, values in grid.axes.items()},
            parameters=i + 1,
        )
        worth = recorded.rows(f"SELECT coordinates, objective_loss FROM grid_point WHERE cell_id = '{cell}'")
        tried[cell] = ({tuple(row["coordinates"]): row["objective_loss"] for row in worth}, points.keys(), members)
    states = set()
    for row in recorded.rows("SELECT certificate.*, coordinates FROM best_run JOIN certificate USING (cell_id)"):
        results, points, members = tried[row["cell_id"]]
        assert results.keys() == points
        twin = certificate(results, grid)
        states.add(row["state"])
        assert (row["state"], tuple(row["coordinates"])) == (twin.state, twin.best)
        assert row["margin"] == pytest.approx(twin.margin)
        assert row["within_noise"] is None
        assert row["reason"].endswith(f"; each point is the loss of {members} members together")
    assert states == {"certified", "boundary", "open"}


def test_a_point_whose_member_diverged_is_worse_and_one_not_yet_evaluated_was_not_run(recorded):
    cell = tuned(recorded, {(1,): in_k(3.0)}, axes=LR)
    recorded.trial(cell, "search", (0,), 2.5)
    assert recorded.rows("SELECT coordinates FROM grid_point") == [{"coordinates": [1]}]
    assert recorded.rows("SELECT state, neighbours_missing FROM certificate") == [{"state": "open", "neighbours_missing": 2}]
    recorded.trial(cell, "member", (0,), math.inf)
    recorded.trial(cell, "search", (2,), math.inf)
    assert [row["objective_loss"] is None for row in recorded.rows("FROM grid_point ORDER BY coordinates")] == [True, False, True]
    assert recorded.rows("SELECT state, margin FROM certificate") == [{"state": "certified", "margin": None}]


def test_the_optimum_for_many_members_need_not_be_that_of_one(recorded):
    cell = recorded.cell({}, axes=LR, limit="K", objective="K", members=4)
    for place, (limit, single) in enumerate([(3.2, 3.3), (3.0, 3.6), (3.1, 3.5)]):
        recorded.ensemble(cell, (place,), in_k(limit), singles=[single, single + 0.1, single + 0.2, single + 0.3])
    (row,) = recorded.rows("FROM best_run")
    assert (row["coordinates"], row["val_loss"], row["seeds"], row["runs"]) == ([1], 3.6, 4, 12)
    assert row["val_loss_mean"] == pytest.approx(3.75) and row["selected"]  # they are what was tuned


def test_the_limit_in_members_is_the_least_over_sizes_with_its_own_interval(recorded):
    for i, limit in enumerate((3.3, 3.1, 3.2)):
        tuned(recorded, {(0,): noisy(i, limit)}, parameters=10**8 * (i + 1))
    (row,) = recorded.rows("FROM asymptote")
    (law,) = recorded.rows("FROM ensemble_asymptote WHERE cell_id LIKE '%/200000000'")
    assert (row["kind"], row["variable"], row["points"]) == ("asymptote in K, best over N", "members", 4)
    same = ("limit_loss", "a", "alpha", "rmse")
    assert [row[name] for name in same] == pytest.approx([law[name] for name in same], abs=1e-6)
    assert [row[end] for end in ("e_low", "e_high")] == pytest.approx(
        [law[end] for end in ("e_low", "e_high")], abs=0.2 * law["standard_error"]
    )
    assert (row["best_trained"], row["best_cell"]) == (law["val_loss"], law["cell_id"])


def test_nested_laws_give_back_the_limit_of_the_limits(recorded):
    for n in (0.15, 0.3, 0.6, 1.4):
        tuned(recorded, {(0,): in_k(3.17 + 0.05 * n**-0.9)}, limit="K then N", parameters=round(n * 1e9))
    (row,) = recorded.rows("FROM asymptote")
    assert (row["kind"], row["variable"], row["points"]) == ("asymptote in K, then N", "members, then parameters_total", 4)
    assert (row["limit_loss"], row["a"], row["alpha"]) == pytest.approx((3.17, 0.05, 0.9), abs=1e-4)
    assert row["best_trained"] == pytest.approx(3.17 + 0.05 * 1.4**-0.9 + 0.2 * 4**-0.9)


def test_the_loss_of_all_members_has_the_error_of_the_jackknife(recorded):
    losses, everyone = noisy(2), set(range(4))
    recorded.ensemble(recorded.cell({}, limit="best", members=4), (0,), losses)
    (row,) = recorded.rows("FROM cell_limit")
    without = [losses(tuple(everyone - {place})) for place in everyone]
    error = math.sqrt(3 / 4 * sum((loss - sum(without) / 4) ** 2 for loss in without))
    assert (row["limit_loss"], row["standard_error"]) == (losses((0, 1, 2, 3)), pytest.approx(error))
    assert row["reached_error"] == row["standard_error"] and row["interval_reason"] is None and row["selected"]


def test_a_limit_over_limits_that_are_missing_says_what_is(recorded):
    for i, members in enumerate((4, 4, 2)):
        tuned(recorded, {(0,): in_k(3.0)}, limit="K then N", parameters=10**8 * (i + 1), members=members)
    recorded.cell({(0,): 3.0}, recipe="unevaluated", limit="K")
    rows = {row["recipe"]: row for row in recorded.rows("FROM asymptote")}
    assert rows["standard"]["limit_loss"] is None
    assert "there are 2; 1 of 3 sizes have no limit in K: a law with three parameters" in rows["standard"]["reason"]
    assert rows["unevaluated"]["reason"] == "no size has a limit in K: no ensemble was evaluated at the optimum"


def test_members_count_as_repeats(recorded):
    cell = recorded.cell({}, limit="K")
    recorded.ensemble(cell, (0,), in_k(3.0), 3, singles=[3.0, 3.1, 3.3])
    (row,) = recorded.rows("FROM noise")
    assert (row["noise_sd"], row["degrees_of_freedom"], row["points"]) == (pytest.approx((0.14 / 6) ** 0.5), 2, 1)


def test_the_curve_of_an_optimum_is_that_of_its_subsets(recorded):
    losses = noisy(3)
    tuned(recorded, {(0,): in_k(3.5), (1,): losses}, axes=LR)
    rows = recorded.rows("FROM ensemble_curve ORDER BY members")
    assert [row["mean_loss"] for row in rows] == pytest.approx(curve(losses, range(4))[1])
    assert [row["subsets"] for row in rows] == [4, 6, 4, 1]
    assert all(row["least"] <= row["mean_loss"] + 1e-12 and row["mean_loss"] <= row["greatest"] + 1e-12 for row in rows)


def test_a_summary_counts_what_the_best_loss_took(recorded):
    teacher = tuned(recorded, {(0,): in_k(3.0)}, recipe="ensemble", parameters=300)
    recorded.connection.execute("UPDATE run SET training_flops = 10")
    student = recorded.cell({(0,): 3.1}, recipe="student", limit="best", parameters=200, teacher=teacher)
    rows = {row["recipe"]: row for row in recorded.rows("FROM recipe_summary")}
    took = ("best_cell", "members", "inference_parameters", "training_flops", "teacher_flops", "best_trained")
    assert [rows["ensemble"][name] for name in took] == [teacher, 4, 1200, 40, None, pytest.approx(3.0 + 0.2 * 4**-0.9)]
    assert [rows["student"][name] for name in took] == [student, 1, 200, 1, 10 * 4, 3.1]


def test_data_efficiency_takes_limits_of_every_kind(recorded):
    for millions in (200, 400, 800):
        baseline = 1.9 + 6.0 * millions**-0.24
        recorded.cell({(0,): baseline}, limit="best", seed_tokens=millions * 10**6)
        of_ensembles = 1.9 + 6.0 * (3 * millions) ** -0.24
        tuned(recorded, {(0,): in_k(of_ensembles)}, recipe="ensemble", seed_tokens=millions * 10**6)
    rows = recorded.rows("FROM data_efficiency WHERE recipe = 'ensemble'")
    assert [row["data_efficiency"] for row in rows] == pytest.approx([3, 3, 3], rel=1e-3)
    assert all(1 < row["data_efficiency_trained"] < 3 for row in rows)
