"""The Runs page, in a browser: which runs, their curves, one run; and the queries behind it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from dataeff.errors import QueryError
from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.reports import runs

CURVE = "SELECT value FROM metric WHERE run_id = $1 AND name = 'train_loss' ORDER BY step"
BEST = "SELECT run_id FROM run WHERE val_loss IS NOT NULL ORDER BY val_loss, run_id"


@pytest.fixture
def connection(finished):
    with Database(finished / "dataeff.duckdb").read() as reading:
        yield reading


def test_choices_and_a_condition_in_the_url_leave_the_runs_that_sql_leaves(tab, finished, connection):
    where = "lr < 0.02 and epochs >= 2"
    counted = f"""SELECT count(DISTINCT run_id) FROM run JOIN trial USING (run_id) JOIN cell USING (cell_id)
        WHERE recipe = 'standard' AND cell.seed_tokens = 2048 AND {where}"""
    (matching,) = connection.execute(counted).fetchone()
    assert matching > 1
    shown = tab(finished / "dataeff.duckdb").open(f"runs?recipe=standard&D=2048&where={quote(where)}&sort=lr")
    assert f"{matching} runs match; all are shown" in shown.text


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


def test_a_run_has_a_page_by_the_beginning_of_its_id(tab, finished, connection):
    run_id, loss, error = connection.execute(
        f"SELECT run_id, val_loss, val_loss_standard_error FROM run WHERE run_id IN ({BEST} LIMIT 1)"
    ).fetchone()
    shown = tab(finished / "dataeff.duckdb").open(f"runs?run={run_id[:10]}")
    assert f"Run {run_id}" in shown.text
    assert f"{loss:.4f} ± {error:.4f} nats/token" in shown.text
    assert shown.charts == 1
    assert "no run id begins with 'zzz'; `dataeff runs` lists them" in shown.open("runs?run=zzz").page.inner_text("body")


def test_imported_runs_without_curves_say_so(tab, laptop):
    with Database(laptop).read() as connection:
        (run_id,) = connection.execute(BEST + " LIMIT 1").fetchone()
    text = tab(laptop, "dark").open(f"runs?run={run_id}").text
    assert f"No train_loss along training is recorded of {run_id[:8]}" in text
    assert "None is recorded: imported results hold none" in text


def test_without_a_database_the_page_says_what_to_run(tab, empty):
    assert "dataeff run quickstart" in tab(empty).open("runs").page.inner_text("body")


@pytest.mark.parametrize(
    "condition",
    [
        "run_id IN (SELECT content FROM read_text('/etc/passwd'))",
        "true) UNION ALL SELECT content FROM read_text('/etc/passwd') WHERE (true",
        "true); COPY run TO '/tmp/out.csv'; SELECT (true",
        "learning_rate > 1",
    ],
)
def test_a_condition_reaches_no_file_and_a_mistake_names_the_columns(finished, condition):
    with pytest.raises(QueryError, match="The columns of a run are: run_id, status"):
        runs.ids_where(finished / "dataeff.duckdb", None, condition)


def test_what_a_condition_gives_never_becomes_sql(finished, connection):
    escaped = "true) HAVING false UNION ALL SELECT 'x'')) OR true --' WHERE (true"
    ids = runs.ids_where(finished / "dataeff.duckdb", None, escaped)
    assert ids == "x')) OR true --"
    assert queries.query(connection, runs.count_query(runs.matching(ids=ids)))[1] == [(0,)]


def test_neighbours_are_one_step_away_and_the_difference_is_that_of_the_losses(connection):
    cell, run_id, loss, missing = connection.execute(
        """SELECT cell_id, best_run.run_id, val_loss, neighbours_missing FROM best_run JOIN certificate USING (cell_id)
           WHERE best_run.recipe = 'standard' AND margin IS NOT NULL ORDER BY ALL LIMIT 1"""
    ).fetchone()
    (margin,) = connection.execute("SELECT margin FROM certificate WHERE cell_id = $1", [cell]).fetchone()
    near = [row for row in runs.neighbours(connection, run_id) if row["cell_id"] == cell]
    assert min(row["difference"] for row in near if row["difference"] is not None) == pytest.approx(margin)
    assert sum(row["status"] == "not run" for row in near) == missing
    assert all((row["here"] == row["there"]) is False for row in near)


def test_curves_are_those_recorded_and_a_mean_smooths_them(connection):
    (run_id,) = connection.execute(BEST).fetchone()
    recorded = [row[0] for row in connection.execute(CURVE, [run_id]).fetchall()]
    drawn = runs.curves(connection, [run_id], ["train_loss"], across="epochs")
    assert [point["value"] for point in drawn] == recorded
    (epochs,) = connection.execute("SELECT epochs FROM run WHERE run_id = $1", [run_id]).fetchone()
    assert drawn[-1]["x"] == epochs
    smooth = runs.curves(connection, [run_id], ["train_loss"], smoothing=200)
    assert [point["value"] for point in smooth] == pytest.approx([sum(recorded) / len(recorded)] * len(recorded))


@pytest.mark.parametrize("log_x", [False, True])
def test_a_long_curve_is_thinned_to_the_extremes_of_its_buckets_and_this_is_said(tmp_path, log_x):
    with Database(tmp_path / "long.duckdb").write() as connection:
        connection.execute("""INSERT INTO run BY NAME SELECT 'r' AS run_id, 'finished' AS status, 1000 AS seed_tokens,
            1 AS parameters_total, 1e6 AS training_flops, 1000000 AS tokens_seen, '{}' AS spec""")
        connection.execute("""INSERT INTO metric SELECT 'r', i, 10 * i, 'train_loss',
            CASE i WHEN 70001 THEN 99 WHEN 70002 THEN NULL ELSE 5 + (hash(i) % 100) / 100 END FROM range(1, 100001) AS s(i)""")
        points = runs.curves(connection, ["r"], ["train_loss"], "FLOPs", log_x=log_x)
    assert 1000 < len(points) <= 4002
    assert max(points, key=lambda point: point["value"])["step"] == 70001
    assert (points[0]["step"], points[-1]["x"]) == (1, pytest.approx(1e6, rel=1e-3))
    assert any("from 100,000 points to" in line for line in runs.curves_note(points, ["r"], ["train_loss"], "FLOPs"))


def test_parallel_coordinates_keep_the_best_and_say_how_many(connection):
    found = runs.matching("tiny")
    lines = queries.records(connection, runs.parallel_query(found))
    (count,) = queries.query(connection, runs.count_query(found))[1][0]
    assert len(lines) == count * len(runs.AXES)
    assert {line["position"] for line in lines if line["axis"] == "val_loss"} >= {0.0, 1.0}
    assert {line["matching"] for line in lines} == {count}
