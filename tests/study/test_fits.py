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
    fits = rows(database, "FROM fit_state WHERE quantity NOT IN ('reached', 'optimum')")
    assert len(fits) == 4 * (1 + 2 * 3)  # recipes x (a law over D, and three quantities at two budgets)
    assert not any(fit["stale"] for fit in fits)
    assert {fit["resamples"] for fit in fits} <= {0, RESAMPLES}
    for fit in fits:
        if fit["low"] is not None and fit["high"] is not None:
            assert fit["low"] <= fit["value"] <= fit["high"]


def test_the_stored_laws_are_those_of_the_macro(database):
    """`power_law` is for ad-hoc SQL, and fits in another way."""
    compared = rows(database, """SELECT any_value(limit_loss) AS stored, power_law(list(x), list(y)) AS macro FROM asymptote
        JOIN (SELECT study, recipe, seed_tokens, parameters_total / 1e9 AS x, limit_loss AS y FROM cell_limit) AS cell
        USING (study, recipe, seed_tokens) WHERE kind = 'asymptote' GROUP BY recipe, seed_tokens""")  # fmt: skip
    laws = [(row["stored"], row["macro"]) for row in compared]
    laws += [(row["stored"], row["macro"]) for row in rows(database, """SELECT any_value(limit_loss) AS stored,
        power_law(list(size.members), list(mean_loss)) AS macro FROM ensemble_asymptote AS law
        JOIN ensemble_size AS size USING (ensemble_id, averaging) GROUP BY ensemble_id, averaging""")]  # fmt: skip
    assert len(laws) > 6
    for stored, macro in laws:
        assert stored == pytest.approx(macro["e"], abs=1e-4) if macro["reason"] is None else stored is None


def test_an_ensemble_is_fitted_once(database):
    ensembles = "SELECT fit_id, value FROM fit WHERE quantity = 'members' ORDER BY ALL"
    before = rows(database, ensembles)
    with database.write() as connection:
        connection.execute("UPDATE fit SET value = 7")
        connection.execute("UPDATE fit SET evidence = 'other' WHERE quantity <> 'members'")
    renew_fits(database)
    assert rows(database, ensembles) == [{**row, "value": 7} for row in before] != []


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
    before = rows(database, "SELECT limit_loss, e_low, stale FROM asymptote ORDER BY recipe, seed_tokens")
    shown = rows(database, "SELECT * FROM asymptote WHERE recipe = 'regularized'")
    assert all(row["stale"] and "`dataeff refresh`" in row["interval_reason"] for row in shown)
    assert rows(database, "SELECT limit_loss, e_low, stale FROM asymptote ORDER BY recipe, seed_tokens") == before
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
