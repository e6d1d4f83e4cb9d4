"""The Laws page, in a browser: what it shows is what SQL says of the same file."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import duckdb
import pytest

from dataeff.records.store import Database
from dataeff.reports.laws import PANELS, study_ratios


@pytest.fixture(scope="module")
def fitted(laptop):
    with Database(laptop).read() as connection:
        yield connection


def downloaded(shown, button: str, number: int = 0) -> list[dict[str, str]]:
    with shown.page.expect_download() as download:
        shown.page.get_by_role("button", name=button, exact=True).nth(number).click()
    with Path(download.value.path()).open() as file:
        return list(csv.DictReader(file))


def test_laws_over_k_are_those_of_the_view_at_the_budget_and_averaging_of_the_url(tab, laptop, fitted):
    shown = tab(laptop).open("laws?study=laptop&over=K&D=16384&averaging=probabilities&recipe=joint")
    rows = {row["size"]: row for row in downloaded(shown, "CSV")}
    views = fitted.execute(
        """SELECT size, limit_loss, e_low, e_high FROM ensemble_asymptote JOIN best_run USING (cell_id, coordinates)
           WHERE recipe = 'joint' AND seed_tokens = 16384 AND averaging = 'probabilities'"""
    ).fetchall()
    assert len(views) == len(rows) == 4
    for size, *values in views:
        assert [float(rows[size][name]) for name in ("limit", "90% from", "to")] == pytest.approx(values)
    measured = [row for row in downloaded(shown, "data") if row["layer"] == "point" and row["size"] == "width64"]
    assert [int(row["members"]) for row in measured] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("panel", "name"), zip(PANELS, ("data_efficiency_trained", "data_efficiency"), strict=True)
)
def test_ratios_are_those_of_the_view(fitted, panel, name):
    rows = {(row["recipe"], row["seed_tokens"]): row for row in study_ratios(fitted, "laptop") if row["panel"] == panel}
    views = fitted.execute(
        f"SELECT recipe, seed_tokens, {name}, {name}_low, {name}_high FROM data_efficiency WHERE {name} IS NOT NULL"
    ).fetchall()
    assert len(views) == len(rows) > 20
    for recipe, tokens, *values in views:
        assert [rows[recipe, tokens][column] for column in ("ratio", "low", "high")] == values


def test_a_law_over_n_predicts_its_largest_point_as_sql_does(tab, laptop, fitted):
    shown = tab(laptop).open("laws?study=laptop&law=regularized, D = 16,384")
    law = "recipe = 'regularized' AND seed_tokens = 16384"
    limit, low, high = fitted.execute(f"SELECT limit_loss, e_low, e_high FROM asymptote WHERE {law}").fetchone()
    row = next(row for row in downloaded(shown, "CSV") if row["recipe"] == "regularized" and row["D"] == "16384")
    assert [float(row[name]) for name in ("limit", "90% from", "to")] == pytest.approx([limit, low, high])
    predicted, measured = fitted.execute(
        f"""WITH point AS (SELECT parameters_total / 1e9 AS x, reached_loss AS y FROM cell_limit WHERE {law}), law AS (
            SELECT power_law(list(x), list(y)) AS fit FROM point WHERE x < (SELECT max(x) FROM point))
            SELECT fit.a * power(x, -fit.alpha) + fit.e, y FROM point, law ORDER BY x DESC LIMIT 1"""
    ).fetchone()
    assert f"the law predicts {predicted:.4f} nats/token; measured: {measured:.4f}" in shown.text
    power = next(row for row in downloaded(shown, "CSV", 2) if row["form"] == "a / x^alpha + E")
    assert float(power["limit"]) == pytest.approx(limit, abs=1e-5)


def test_a_law_without_degrees_of_freedom_has_no_residuals(tab, laptop):
    shown = tab(laptop).open("laws?study=laptop&over=D&law=regularized")
    assert "The largest point cannot be held out" in shown.text
    assert [row["residual"] for row in downloaded(shown, "CSV", 1)] == [""] * 3


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
    shown = tab(finished / "dataeff.duckdb").open("laws?over=D")
    (row,) = (row for row in downloaded(shown, "CSV") if row["recipe"] == "standard")
    assert "3 points; there are 2" in row["caveats"] and "Nothing is fitted" in shown.text


def test_a_study_without_ensembles_or_limits_in_n_says_so(tab, finished, tmp_path):
    path = tmp_path / "plain.duckdb"
    shutil.copy(finished / "dataeff.duckdb", path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM cell WHERE recipe <> 'standard'; DELETE FROM cell_ensemble")
    assert "tiny has no law over K: no ensemble of members is recorded" in tab(path).open("laws?over=K").text
    assert "tiny has no law over N: no recipe takes its limit in N" in tab(path).open("laws?over=N").text
    assert "Laws over seed tokens D" in tab(path).open("laws?over=D").text
