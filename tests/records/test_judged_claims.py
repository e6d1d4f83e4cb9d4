"""Which recorded runs decide a claim, and what is said of it."""

from __future__ import annotations

import json

import pytest

from dataeff.errors import InputError, NotFoundError
from dataeff.reports.judge import claim_sentence, judged_claims

D = 1_000_000


def claim(recorded, **more) -> None:
    recorded.study()
    claims = {"mine": {"better": "better", "than": "standard", "at": D, "by": 0.0} | more}
    recorded.connection.execute("UPDATE study SET spec = $1", [json.dumps({"claims": claims})])


def repeats(recorded, cell: str, losses, point=(0,), role="replicate", first=1) -> list[str]:
    ids = [recorded.trial(cell, role, point, loss) for loss in losses]
    for seed, run_id in enumerate(ids, first):
        recorded.connection.execute("UPDATE run SET train_seed = $1, data_seed = $1 WHERE run_id = $2", [seed, run_id])
    return ids


def judged(recorded) -> dict:
    columns, (row,) = judged_claims(recorded.connection, "study")
    return dict(zip(columns, row, strict=True))


@pytest.fixture
def cells(recorded):
    """A clear difference in three pairs; the runs that tuned say the contrary."""
    claim(recorded)
    standard, better = recorded.cell({(0,): 3.0}), recorded.cell({(0,): 4.0}, recipe="better")
    repeats(recorded, standard, [3.50, 3.53, 3.51])
    repeats(recorded, better, [3.40, 3.42, 3.41])
    return standard, better


def test_pairs_share_a_seed_and_the_runs_that_tuned_decide_nothing(recorded, cells):
    row = judged(recorded)
    assert (row["state"], row["pairs"], row["pairs_expected"]) == ("supported", 3, 0)
    assert (
        row["difference"] == pytest.approx((0.10 + 0.11 + 0.10) / 3) and row["low"] > 0 and row["e_for"] > 20 > row["e_against"]
    )
    assert claim_sentence(row).startswith(
        "Claim mine, better is better than standard at D = 1,000,000: supported after 3 pairs, by 0.103 ("
    )


def test_a_run_without_its_partner_is_no_pair(recorded, cells):
    repeats(recorded, cells[0], [9.0], first=8)
    repeats(recorded, cells[1], [1.0], first=9)
    assert judged(recorded)["pairs"] == 3


def test_a_difference_below_the_margin_is_refuted_and_shown_without_it(recorded, cells):
    claim(recorded, by=0.2)
    row = judged(recorded)
    assert row["state"] == "refuted" and row["e_against"] > 20
    assert row["difference"] == pytest.approx(0.31 / 3) and row["high"] < 0.2
    assert "by more than 0.2" in row["statement"]


def test_a_repeat_that_tuned_another_cell_of_the_study_is_left_out(recorded, cells):
    other = recorded.cell({(0,): 3.0}, recipe="third")
    (shared, *_) = repeats(recorded, cells[0], [3.5], first=4)
    repeats(recorded, cells[1], [3.4], first=4)
    assert judged(recorded)["pairs"] == 4
    recorded.connection.execute("INSERT INTO trial VALUES ($1, $2, 'search', 99, [0])", [other, shared])
    assert judged(recorded)["pairs"] == 3


def test_each_recipe_stands_at_the_size_where_its_search_ended_lowest(recorded, cells):
    larger = recorded.cell({(0,): 2.9}, parameters=2 * 10**9)
    repeats(recorded, larger, [3.3, 3.31, 3.29])
    assert judged(recorded)["difference"] == pytest.approx(-0.11)
    elsewhere = recorded.cell({(0,): 1.0}, seed_tokens=2 * D)
    repeats(recorded, elsewhere, [1.0, 1.0, 1.0])
    assert judged(recorded)["difference"] == pytest.approx(-0.11)


def test_nothing_is_decided_while_a_search_goes_on(recorded, cells):
    assert judged(recorded)["pairs"] == 3
    recorded.connection.execute("UPDATE cell SET state = 'searching' WHERE cell_id = $1", [cells[0]])
    row = judged(recorded)
    assert (row["state"], row["pairs"], row["difference"]) == ("undecided", 0, None) and "must have ended" in row["reason"]
    assert claim_sentence(row).endswith("undecided after 0 pairs; " + row["reason"] + ".")


def test_repeats_of_a_point_that_is_no_longer_the_optimum_do_not_count(recorded):
    claim(recorded)
    standard = recorded.cell({(0,): 3.0, (1,): 2.9}, axes={"lr": [1e-3, 3e-3]})
    repeats(recorded, standard, [3.1] * 3, (0,))
    repeats(recorded, recorded.cell({(0,): 2.0}, recipe="better"), [2.1] * 3)
    assert judged(recorded)["pairs"] == 0
    repeats(recorded, standard, [3.0] * 2, (1,))
    assert judged(recorded)["pairs"] == 2


def test_a_pair_with_a_diverged_run_is_left_out_and_counted(recorded, cells):
    repeats(recorded, cells[0], [3.5], first=4)
    repeats(recorded, cells[1], [float("inf")], first=4)
    row = judged(recorded)
    assert row["pairs"] == 3 and row["reason"] == "1 left out: a run diverged"


def test_an_undecided_claim_says_how_many_pairs_are_expected(recorded):
    claim(recorded)
    repeats(recorded, recorded.cell({(0,): 3.0}), [3.5, 3.6, 3.5])
    repeats(recorded, recorded.cell({(0,): 3.0}, recipe="better"), [3.45, 3.5, 3.49])
    row = judged(recorded)
    assert row["state"] == "undecided" and row["pairs_expected"] > 0 and row["low"] < 0 < row["high"]
    assert f"about {row['pairs_expected']} more pairs expected" in claim_sentence(row)


def test_a_study_without_claims_or_without_a_record_is_refused(recorded):
    recorded.study()
    with pytest.raises(InputError, match="declares no claim; add one"):
        judged_claims(recorded.connection, "study")
    with pytest.raises(NotFoundError):
        judged_claims(recorded.connection, "studdy")


def test_a_draw_of_the_data_is_one_pair_whatever_the_number_of_its_seeds(recorded, cells):
    for cell, losses in zip(cells, ([3.0, 3.1, 3.7], [2.9, 2.9]), strict=True):
        ids = repeats(recorded, cell, losses, first=7)
        recorded.connection.execute("UPDATE run SET draw = 1 WHERE list_contains($1, run_id)", [ids])
    row = judged(recorded)
    assert row["pairs"] == 4
    assert row["difference"] == pytest.approx((0.10 + 0.11 + 0.10 + (9.8 / 3 - 2.9)) / 4)


def test_an_ensemble_is_paired_with_single_models_on_the_same_draw(recorded):
    claim(recorded, better="many")
    standard, many = recorded.cell({(0,): 3.0}), recorded.cell({}, recipe="many", limit="K", members=3)
    recorded.ensemble(many, (0,), lambda subset: 9.0, members=3)
    for draw, (single, together) in enumerate([(3.5, 3.3), (3.6, 3.41), (3.4, 3.2)], 1):
        ids = repeats(recorded, standard, [single], first=draw)
        recorded.connection.execute("UPDATE run SET draw = $1 WHERE run_id = $2", [draw, ids[0]])
        ensemble = recorded.ensemble(many, (0,), lambda subset, loss=together: loss, members=3)
        of_draw = f"role = 'replicate', draw = {draw} WHERE ensemble_id = '{ensemble}'"
        recorded.connection.execute(f"UPDATE cell_ensemble SET {of_draw}")
    row = judged(recorded)
    assert row["pairs"] == 3 and row["difference"] == pytest.approx((0.2 + 0.19 + 0.2) / 3)
