"""The Ensembles, Data efficiency and Laws pages, in a browser: what they show is what SQL says of the same file."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import duckdb
import pytest

from dataeff.records.store import Database
from dataeff.reports.charts import chart_bytes
from dataeff.reports.efficiency import by_method, ratios_chart, study_efficiency
from dataeff.reports.theme import themed
from dataeff.study.fits import renew_fits


@pytest.fixture(scope="module")
def fitted(laptop):
    """The laptop database with its intervals, and a connection to it."""
    renew_fits(Database(laptop), "laptop")
    with Database(laptop).read() as connection:
        yield connection


def downloaded(shown, button: str, number: int = 0) -> list[dict[str, str]]:
    with shown.page.expect_download() as download:
        shown.page.get_by_role("button", name=button, exact=True).nth(number).click()
    with Path(download.value.path()).open() as file:
        return list(csv.DictReader(file))


def drawn(shown) -> str:
    return " ".join(shown.page.locator("[data-testid=stVegaLiteChart] svg.marks text").all_text_contents())


def test_the_members_of_the_url_are_shown_with_the_limits_of_the_view(tab, laptop, fitted):
    shown = tab(laptop).open("ensembles?recipe=joint&D=16384&size=width64&averaging=probabilities&cell=joint/16384/width64")
    assert "D = 16,384 tokens, probabilities averaged" in shown.text
    assert shown.charts == 3
    (row,) = downloaded(shown, "CSV")
    loss, limit, low = fitted.execute(
        """SELECT law.val_loss, limit_loss, e_low FROM ensemble_asymptote AS law JOIN best_run USING (cell_id, coordinates)
           WHERE cell_id = 'laptop/joint/16384/width64' AND averaging = 'probabilities'"""
    ).fetchone()
    assert [float(row[name]) for name in ("K members", "limit in K", "90% from")] == pytest.approx([loss, limit, low])
    measured = downloaded(shown, "data")
    assert [int(row["members"]) for row in measured] == [1, 2, 3, 4]
    assert float(measured[-1]["val_loss"]) == pytest.approx(loss)


def test_the_heat_maps_name_the_best_single_model_and_the_best_limit(tab, laptop, fitted):
    shown = tab(laptop, "dark").open("ensembles?D=8192&cell=joint/8192/width32")
    limits = downloaded(shown, "data", 2)
    (points, least) = fitted.execute(
        "SELECT count(*), min(objective_loss) FROM grid_point WHERE cell_id = 'laptop/joint/8192/width32'"
    ).fetchone()
    assert len(limits) == points and min(float(row["limit_loss"]) for row in limits) == pytest.approx(least)
    (single,) = fitted.execute(
        """SELECT avg(run.val_loss) AS single FROM trial JOIN run USING (run_id) WHERE cell_id = 'laptop/joint/8192/width32'
           AND role IN ('search', 'member') GROUP BY coordinates ORDER BY single LIMIT 1"""
    ).fetchone()
    assert f"{single:.4f} nats/token; the limit is best at" in drawn(shown)
    assert f"{least:.4f} nats/token (outlined)" in drawn(shown)


@pytest.mark.parametrize(
    ("method", "ending", "reason"), [("by law", "", "reason"), ("interpolated", "_interpolated", "interpolation_reason")]
)
def test_ratios_are_those_of_the_view_and_what_has_none_is_listed(tab, laptop, fitted, method, ending, reason):
    shown = tab(laptop).open(f"data_efficiency?recipe=ensemble&recipe=regularized&method={method}")
    rows = {(row["recipe"], int(row["seed_tokens"])): row for row in downloaded(shown, "data", 1)}
    name = f"data_efficiency{ending}"
    asked = fitted.execute(
        f"""SELECT recipe, seed_tokens, {name}, {name}_low, {name}_high, {reason} FROM data_efficiency
            WHERE recipe IN ('ensemble', 'regularized')"""
    ).fetchall()
    assert len(asked) == len(rows) == 8
    for recipe, tokens, *values, why in asked:
        row = rows[recipe, tokens]
        shown_values = [float(row[name]) if row[name] else None for name in ("ratio", "low", "high")]
        assert shown_values == [None if value is None else pytest.approx(value) for value in values]
        if values[0] is None:
            assert re.search(f"{recipe} at D = .*{tokens:,}.*: {re.escape(why)}", shown.text)


def test_an_interval_without_an_upper_end_is_drawn_as_an_arrow(fitted):
    found = study_efficiency(fitted, "laptop")
    ratios = [row for row in by_method(found["ratios"], "by law") if row["recipe"] == "ensemble"]
    note = "the interval has no end there"
    bounded, unbounded = (
        themed(ratios_chart(rows, "by law", found["recipes"], "standard"))
        for rows in (ratios, [{**row, "high": None} for row in ratios])
    )
    assert note not in bounded.to_json() and note in str(unbounded.to_dict()["title"])
    marks = [chart_bytes(chart, "svg").count(b'aria-roledescription="point"') for chart in (bounded, unbounded)]
    assert marks[1] - marks[0] == len(ratios)


def test_a_law_over_n_is_that_of_sql_and_foretells_its_largest_point_as_sql_does(tab, laptop, fitted):
    shown = tab(laptop).open("laws?recipe=regularized&D=16384")
    law = "recipe = 'regularized' AND seed_tokens = 16384"
    limit, low, high = fitted.execute(f"SELECT limit_loss, e_low, e_high FROM asymptote WHERE {law}").fetchone()
    assert f"The limit is {limit:.4f} nats/token, 90% interval {low:.4f} to {high:.4f} (resampled chain)" in shown.text
    predicted, measured = fitted.execute(
        f"""WITH point AS (SELECT parameters_total / 1e9 AS x, reached_loss AS y FROM cell_limit WHERE {law}), law AS (
            SELECT power_law(list(x), list(y)) AS fit FROM point WHERE x < (SELECT max(x) FROM point))
            SELECT fit.a * power(x, -fit.alpha) + fit.e, y FROM point, law ORDER BY x DESC LIMIT 1"""
    ).fetchone()
    assert f"the law predicts {predicted:.4f} nats/token there; measured: {measured:.4f}" in shown.text
    power = next(row for row in downloaded(shown, "CSV") if row["form"] == "power law")
    assert float(power["limit"]) == pytest.approx(limit, abs=1e-5)
    assert shown.charts == 2


def test_a_law_over_k_links_its_members_and_the_url_shows_it_again(tab, laptop, fitted):
    shown = tab(laptop).open("laws?over=K&recipe=ensemble&size=width64")
    members, limit = fitted.execute(
        """SELECT ensemble.members, limit_loss FROM ensemble_asymptote JOIN ensemble USING (ensemble_id)
           WHERE cell_id = 'laptop/ensemble/32768/width64' AND averaging = 'logits'"""
    ).fetchone()
    assert f"The limit is {limit:.4f}" in shown.text
    assert "exponential" in drawn(shown)
    shown.page.get_by_text("5 runs, its members").click()
    links = shown.page.locator("a[href*='run=']")
    links.first.wait_for()
    assert sorted(links.all_inner_texts()) == sorted(members)
    assert links.first.get_attribute("href").endswith(f"runs?study=laptop&run={min(members)}")
    shown.page.get_by_role("radio", name="D").click()
    shown.page.wait_for_selector("text=ensemble over D")
    again = tab(laptop).open("laws" + shown.look().page.url.partition("/laws")[2])
    assert again.text == shown.text


def test_a_small_study_says_what_it_lacks(tab, finished):
    path = finished / "dataeff.duckdb"
    assert "a law with three parameters needs 3 points; there are 2" in tab(path).open("laws?over=D").text
    assert "the baseline has no data law" in tab(path).open("data_efficiency").text
    assert 'objective = "K"' in tab(path).open("ensembles").text


def test_a_study_without_ensembles_or_limits_in_n_says_so(tab, finished, tmp_path):
    path = tmp_path / "plain.duckdb"
    shutil.copy(finished / "dataeff.duckdb", path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM cell WHERE recipe <> 'standard'; DELETE FROM cell_ensemble")
    assert "No ensemble is recorded in tiny" in tab(path).open("ensembles").text
    shown = tab(path).open("laws")
    said = shown.page.inner_text("[data-testid=stSidebar]")
    assert "No law over N: no recipe takes its limit in N. No law over K: no ensemble is recorded." in said
    assert "standard over D" in shown.text


@pytest.mark.parametrize("page", ["ensembles", "data_efficiency", "laws"])
def test_without_a_database_the_page_says_what_to_run(tab, empty, page):
    assert "dataeff run quickstart" in tab(empty).open(page).text
