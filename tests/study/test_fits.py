"""Table `fit`: what it says of a study that was really run, and when it is out of date."""

from __future__ import annotations

import shutil

import pytest

from dataeff.records.queries import records
from dataeff.records.store import Database
from dataeff.study.fits import RESAMPLES, renew_fits


@pytest.fixture
def database(finished, tmp_path) -> Database:
    shutil.copy(finished / "dataeff.duckdb", tmp_path / "copy.duckdb")
    return Database(tmp_path / "copy.duckdb")


def rows(database: Database, text: str) -> list[dict]:
    with database.read() as connection:
        return records(connection, text)


def test_a_study_that_was_run_to_its_end_has_its_fits(database):
    assert renew_fits(database) == 0
    fits = rows(database, "FROM fit_state")
    assert len(fits) == 4 * (1 + 2 * 4)  # recipes x (a law over D, and four quantities at two budgets)
    assert not any(fit["stale"] for fit in fits)
    assert {fit["resamples"] for fit in fits} <= {0, RESAMPLES}
    for fit in fits:
        if fit["low"] is not None and fit["high"] is not None:
            assert fit["low"] <= fit["value"] <= fit["high"]


def test_the_exact_fits_are_those_of_the_views(database):
    for limit in rows(database, """SELECT fit.value, asymptote.limit_loss, kind, low, e_low FROM fit
            JOIN asymptote USING (study, recipe, seed_tokens) WHERE quantity = 'asymptote'"""):  # fmt: skip
        assert limit["value"] == pytest.approx(limit["limit_loss"], abs=1e-4)
        assert limit["low"] == limit["e_low"]


def test_a_fit_names_the_runs_it_rests_on(database):
    (fit,) = rows(database, "FROM fit WHERE recipe = 'standard' AND quantity = 'asymptote' AND seed_tokens = 1024")
    wanted = rows(database, """SELECT DISTINCT trial.run_id FROM best_run JOIN trial USING (cell_id, coordinates)
        WHERE recipe = 'standard' AND seed_tokens = 1024 ORDER BY ALL""")  # fmt: skip
    assert fit["run_ids"] == [row["run_id"] for row in wanted]
    assert len(fit["run_ids"]) == 6  # the optima of three sizes under two seeds


def test_a_run_that_is_added_marks_the_fits_of_its_recipe_and_renewing_unmarks_them(database):
    with database.write() as connection:
        connection.execute("""INSERT INTO run SELECT * REPLACE ('added' AS run_id, 1.5 AS val_loss) FROM run
            WHERE run_id = (SELECT min(run_id) FROM best_run WHERE recipe = 'regularized')""")
        connection.execute("""INSERT INTO trial SELECT * REPLACE ('added' AS run_id, 'replicate' AS role) FROM trial
            SEMI JOIN (SELECT min_by(cell_id, run_id) AS cell_id, min(run_id) AS run_id FROM best_run
                WHERE recipe = 'regularized') USING (cell_id, run_id)""")  # fmt: skip
    stale = rows(database, "SELECT DISTINCT recipe FROM fit_state WHERE stale")
    assert stale == [{"recipe": "regularized"}]
    moved = rows(database, "FROM asymptote WHERE recipe = 'regularized' AND interval_reason LIKE 'runs added since%'")
    assert all(row["e_low"] is None for row in moved)
    assert renew_fits(database) > 0
    assert rows(database, "FROM fit_state WHERE stale") == []
    assert any("added" in fit["run_ids"] for fit in rows(database, "FROM fit WHERE recipe = 'regularized'"))


def test_renewing_again_gives_the_same_intervals(database):
    """Up to rounding: DuckDB adds in whatever order rows come."""
    numbers = "SELECT coalesce(COLUMNS(['value', 'low', 'high']), -1) FROM fit ORDER BY fit_id"
    before = rows(database, numbers)
    with database.write() as connection:
        connection.execute("UPDATE fit SET evidence = 'other'")
    renew_fits(database)
    for new, old in zip(rows(database, numbers), before, strict=True):
        assert new == pytest.approx(old, rel=1e-6)
