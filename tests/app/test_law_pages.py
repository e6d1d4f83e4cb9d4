"""The laws of a study are what SQL says of the same file, and the Laws page shows them."""

from __future__ import annotations

import shutil

import duckdb
import numpy as np
import pytest
from scipy.optimize import least_squares

from dataeff.records.queries import records
from dataeff.records.store import Database
from dataeff.reports.laws import RATIOS, law_table, law_tests, study_laws


@pytest.fixture(scope="module")
def fitted(laptop):
    with Database(laptop).read() as connection:
        yield connection


def table(laws: list[dict]) -> list[dict]:
    columns, rows = law_table(laws)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_laws_over_k_are_those_of_the_view(fitted):
    found = study_laws(fitted, "laptop", "K")
    views = fitted.execute(
        """SELECT recipe, seed_tokens, size, averaging, limit_loss, e_low, e_high
           FROM ensemble_asymptote JOIN best_run USING (cell_id, coordinates)"""
    ).fetchall()
    rows = {tuple(row[name] for name in ("recipe", "D", "size", "averaging")): row for row in table(found["laws"])}
    assert len(views) == len(rows) > 40
    for *key, limit, low, high in views:
        assert [rows[tuple(key)][name] for name in ("limit", "90% from", "to")] == [limit, low, high]
    own = [point["members"] for point in found["points"] if point["name"] == "joint, D = 16,384, width64, probabilities"]
    assert own == [1, 2, 3, 4]


@pytest.mark.parametrize(("panel", "name"), [("What was trained", "data_efficiency_trained"), ("Limits", "data_efficiency")])
def test_ratios_are_those_of_the_view(fitted, panel, name):
    rows = {(row["recipe"], row["seed_tokens"]): row for row in records(fitted, RATIOS, ["laptop"]) if row["panel"] == panel}
    views = fitted.execute(
        f"SELECT recipe, seed_tokens, {name}, {name}_low, {name}_high FROM data_efficiency WHERE {name} IS NOT NULL"
    ).fetchall()
    assert len(views) == len(rows) > 15
    for recipe, tokens, *values in views:
        assert [rows[recipe, tokens][column] for column in ("ratio", "low", "high")] == values


def test_a_law_over_n_predicts_its_largest_point_as_sql_does(tab, laptop, fitted):
    law = "recipe = 'regularized' AND seed_tokens = 16384"
    limit, low, high = fitted.execute(f"SELECT limit_loss, e_low, e_high FROM asymptote WHERE {law}").fetchone()
    found = study_laws(fitted, "laptop", "N")
    (own,) = (own for own in found["laws"] if own["name"] == "regularized, D = 16,384")
    (row,) = table([own])
    assert [row[name] for name in ("limit", "90% from", "to")] == [limit, low, high]
    (held_out,) = fitted.execute(f"SELECT held_out FROM fit WHERE quantity = 'asymptote' AND {law}").fetchone()
    tests = law_tests(own, found["points"], "N")
    assert f"a miss of {held_out:+.4f}." in tests["sentence"]
    points = fitted.execute(f"SELECT parameters_total / 1e9, limit_loss FROM cell_limit WHERE {law} ORDER BY 1").fetchall()
    x, y = np.array(points).T
    root = np.sqrt(own["weights"][:-1])
    a, alpha, e = least_squares(lambda v: (v[0] * x[:-1] ** -v[1] + v[2] - y[:-1]) * root, (0.01, 1, 3), xtol=1e-15).x
    assert y[-1] - (a * x[-1] ** -alpha + e) == pytest.approx(held_out, abs=1e-5)
    limits = {rival[0]: rival[1] for rival in tests["rivals"][1]}
    assert limits["a / x^alpha + E"] == pytest.approx(limit, abs=1e-5) and limits["a / x^alpha"] is None
    assert tests["sentence"] in tab(laptop).open("laws?study=laptop&law=regularized, D = 16,384").text


def test_a_law_without_degrees_of_freedom_has_no_residuals(fitted):
    found = study_laws(fitted, "laptop", "D")
    law = next(law for law in found["laws"] if law["recipe"] == "regularized")
    tests = law_tests(law, found["points"], "D")
    assert "cannot be held out" in tests["sentence"] and [row[2] for row in tests["points"][1]] == [None] * 3


def test_a_law_links_the_runs_it_rests_on_and_the_url_shows_it_again(tab, laptop, fitted):
    shown = tab(laptop).open("laws?study=laptop&over=K&law=ensemble, D = 32,768, width64, logits")
    (members,) = fitted.execute(
        """SELECT ensemble.members FROM ensemble_asymptote JOIN ensemble USING (ensemble_id)
           WHERE cell_id = 'laptop/ensemble/32768/width64' AND averaging = 'logits'"""
    ).fetchone()
    shown.page.get_by_text("5 runs it rests on").click()
    links = shown.page.locator("a[href*='run=']")
    links.first.wait_for()
    assert sorted(links.all_inner_texts()) == sorted(members)
    assert links.first.get_attribute("href").endswith(f"runs?study=laptop&run={min(members)}")
    shown.page.get_by_role("radio", name="D").click()
    shown.page.wait_for_selector("text=Laws over seed tokens D")
    again = tab(laptop).open("laws" + shown.look().page.url.partition("/laws")[2])
    assert again.text == shown.text


def test_a_small_study_says_what_it_lacks(tab, finished):
    with Database(finished / "dataeff.duckdb").read() as connection:
        rows = table(study_laws(connection, "tiny", "D")["laws"])
    assert "3 points; there are 2" in next(row["caveats"] for row in rows if row["recipe"] == "standard")
    assert "Nothing is fitted" in tab(finished / "dataeff.duckdb").open("laws?over=D").text


def test_a_study_without_ensembles_or_limits_in_n_says_so(tab, finished, tmp_path):
    path = tmp_path / "plain.duckdb"
    shutil.copy(finished / "dataeff.duckdb", path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM cell WHERE recipe <> 'standard'; DELETE FROM cell_ensemble")
    assert "tiny has no law over K: no ensemble of members is recorded" in tab(path).open("laws?over=K").text
    assert "tiny has no law over N: no recipe takes its limit in N" in tab(path).open("laws?over=N").text
    assert "Laws over seed tokens D" in tab(path).open("laws?over=D").text
