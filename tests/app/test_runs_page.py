"""The Runs page, in a browser: which runs, their curves, one run; and the queries behind it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.reports import runs
from dataeff.reports.theme import PALETTE

CURVE = "SELECT value FROM metric WHERE run_id = $1 AND name = 'train_loss' ORDER BY step"
BEST = "SELECT run_id FROM run WHERE val_loss IS NOT NULL ORDER BY val_loss, run_id"


@pytest.fixture
def connection(finished):
    with Database(finished / "dataeff.duckdb").read() as reading:
        yield reading


def test_choices_in_the_url_leave_the_runs_that_sql_leaves(tab, finished, connection):
    counted = """SELECT count(DISTINCT run_id) FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
        WHERE recipe = 'standard' AND cell.seed_tokens = 2048"""
    (matching,) = connection.execute(counted).fetchone()
    assert matching > 1
    shown = tab(finished / "dataeff.duckdb").open("runs?recipes=standard&seed_tokens=2048&sort=lr")
    assert f"{matching} runs match" in shown.text


def test_ticked_runs_are_in_the_url_and_the_url_draws_them_again(tab, finished, connection):
    best, second = [row[0] for row in connection.execute(BEST + " LIMIT 2").fetchall()]
    shown = tab(finished / "dataeff.duckdb").open("runs")
    table = shown.page.locator("[data-testid=stDataFrame]").first.locator("canvas").first
    for row in (1, 2):
        table.click(position={"x": 18, "y": 18 + 35 * row}, force=True)
        shown.page.wait_for_url(re.compile(f"runs={(best, second)[row - 1]}"))
    again = tab(finished / "dataeff.duckdb").open("runs" + shown.page.url.partition("/runs")[2])
    for each in (shown.look(), again):
        assert each.page.locator("[data-testid=stVegaLiteChart] svg.marks").first.locator("text", has_text=best[:8]).count()
    assert parse_qs(urlsplit(again.page.url).query)["runs"] == [best, second]
    table.click(position={"x": 18, "y": 18 + 35}, force=True)  # ticked off again
    shown.page.wait_for_url(lambda url: best not in url)


def test_a_run_has_a_page_by_the_beginning_of_its_id(tab, finished, connection):
    run_id, loss, error = connection.execute(
        f"SELECT run_id, val_loss, val_loss_standard_error FROM run WHERE run_id IN ({BEST} LIMIT 1)"
    ).fetchone()
    shown = tab(finished / "dataeff.duckdb").open(f"runs?run={run_id[:10]}")
    assert f"Run {run_id}" in shown.text
    assert f"{loss:.4f} ± {error:.4f} nats/token" in shown.text
    assert shown.charts == 1
    assert "no run id begins with 'zzz'; `dataeff runs` lists them" in shown.open("runs?run=zzz").page.inner_text("body")


def test_a_job_that_is_no_run_opens_by_its_id(tab, finished, connection):
    (ensemble,) = connection.execute("SELECT min(ensemble_id) FROM ensemble").fetchone()
    assert f"Ensemble {ensemble}" in tab(finished / "dataeff.duckdb").open(f"runs?run={ensemble}").text


def test_imported_runs_without_curves_say_so(tab, laptop):
    with Database(laptop).read() as connection:
        (run_id,) = connection.execute(BEST + " LIMIT 1").fetchone()
    text = tab(laptop, "dark").open(f"runs?run={run_id}").text
    assert f"No train_loss along training is recorded of {run_id[:8]}" in text
    assert "Attempts: none recorded" in text


def test_what_is_chosen_never_becomes_sql(connection):
    text = runs.table_query(runs.matching("no' OR true --", recipes=["x']) OR true --"]), "val_loss", 10)
    assert queries.records(connection, text) == []


def test_neighbours_are_one_step_away_and_the_difference_is_that_of_the_losses(connection):
    cell, run_id, margin = connection.execute(
        """SELECT cell_id, run_id, margin FROM certificate
           WHERE recipe = 'standard' AND margin IS NOT NULL ORDER BY ALL LIMIT 1"""
    ).fetchone()
    near = [row for row in queries.records(connection, runs.NEIGHBOURS, [run_id]) if row["cell_id"] == cell]
    assert min(row["difference"] for row in near if row["difference"] is not None) == pytest.approx(margin)
    assert all(row["here"] != row["there"] for row in near)
    values = {"lr", "weight_decay", "epochs"}
    for row in near:
        (there,) = connection.execute(f"SELECT {row['axis']} FROM run WHERE run_id = $1", [row["run_id"]]).fetchone()
        assert row["axis"] in values and row["there"] == there


def test_curves_are_those_recorded_and_a_mean_smooths_them(connection):
    (run_id,) = connection.execute(BEST).fetchone()
    recorded = [row[0] for row in connection.execute(CURVE, [run_id]).fetchall()]

    def drawn(**choices):
        return [point for point in runs.curves(connection, [run_id], **choices) if point["name"] == "train_loss"]

    assert [point["value"] for point in drawn(across="epochs")] == recorded
    (epochs,) = connection.execute("SELECT epochs FROM run WHERE run_id = $1", [run_id]).fetchone()
    assert drawn(across="epochs")[-1]["x"] == epochs
    smooth = [point["value"] for point in drawn(smoothing=200)]
    assert smooth == pytest.approx([sum(recorded) / len(recorded)] * len(recorded))


@pytest.mark.parametrize("log_x", [False, True])
def test_a_long_curve_is_thinned_to_the_extremes_of_its_buckets(tmp_path, log_x):
    with Database(tmp_path / "long.duckdb").write() as connection:
        connection.execute("""INSERT INTO run BY NAME SELECT 'r' AS run_id, 'finished' AS status, 1000 AS seed_tokens,
            1 AS parameters_total, 1e6 AS training_flops, 1000000 AS tokens_seen, '{}' AS spec""")
        connection.execute("""INSERT INTO metric SELECT 'r', i, 10 * i, 'train_loss',
            CASE i WHEN 70001 THEN 99 WHEN 70002 THEN NULL ELSE 5 + (hash(i) % 100) / 100 END FROM range(1, 100001) AS s(i)""")
        points = runs.curves(connection, ["r"], across="FLOPs", log_x=log_x)
    assert 1000 < len(points) <= 4002
    assert max(points, key=lambda point: point["value"])["step"] == 70001
    assert (points[0]["step"], points[-1]["x"]) == (1, pytest.approx(1e6, rel=1e-3))
    assert {point["points"] for point in points} == {100_000}


def test_runs_of_one_recipe_each_have_the_colours_of_their_recipes(laptop):
    order = ["standard", "regularized", "distilled"]
    points = [{"run_id": name, "name": "val_loss", "x": 1.0, "value": 4.0} for name in order[::-1]]
    several = [{"run_id": name, "recipes": [name], "label": f"{name} run"} for name in order[::-1]]
    alike = [run | {"recipes": ["standard"]} for run in several]

    def colours(chosen):
        chart = runs.curves_chart(points, chosen, "loss", "tokens", recipes=order)
        scale = chart["layer"][0]["encoding"]["color"]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))

    assert colours(several) == dict(zip(order, PALETTE, strict=False))
    assert list(colours(alike)) == [run["label"] for run in alike]
