"""The reads behind the command line."""

from __future__ import annotations

import pytest
from folders import run_spec, write_run

from dataeff.errors import NotFoundError, QueryError
from dataeff.facts.store import recorded_attempts
from dataeff.records import queries
from dataeff.records.ingest import read_job, record_attempts, record_jobs


@pytest.fixture
def connection(database, store):
    """Three runs: two finished, one diverged."""
    with database.write() as writing:
        folders = [write_run(store, run_spec(lr=lr), loss) for lr, loss in ((1e-3, 3.5), (3e-3, 3.25), (1e-2, None))]
        record_jobs(writing, [read_job("train", folder) for folder in folders])
        record_attempts(writing, [("train", attempt) for folder in folders for attempt in recorded_attempts(folder)])
    with database.read() as reading:
        yield reading


def test_runs_are_sorted_either_way_with_missing_losses_last(connection):
    for sort, expected in (("val_loss", [3.25, 3.5, None]), ("-val_loss", [3.5, 3.25, None])):
        columns, rows = queries.runs(connection, sort=sort, columns=["val_loss", "order"])
        assert columns == ["val_loss", "order"]
        assert [row[0] for row in rows] == expected


def test_every_condition_must_hold_and_a_limit_is_kept(connection):
    assert len(queries.runs(connection, ["lr > 0.002 or false -- all", "status = 'finished'"])[1]) == 1
    assert len(queries.runs(connection, limit=2)[1]) == 2
    assert len(queries.runs(connection, limit=0, columns=["all"])[0]) > 40


def test_runs_are_listed_once_with_the_recipes_and_sizes_that_use_them(recorded):
    recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"lr": [1e-3, 3e-3]})
    recorded.cell({(0,): 3.2}, recipe="better")
    (shared,) = recorded.connection.execute("SELECT run_id FROM run WHERE val_loss = 3.0").fetchone()
    recorded.connection.execute("INSERT INTO trial VALUES ('study/better/1000000/1000000000', $1, 'replicate', 9, [0])", [shared])
    columns = ["recipe", "size", "role", "val_loss"]
    both, size = "better, standard", "n1000000000"
    assert queries.runs(recorded.connection, columns=columns)[1] == [
        (both, size, "replicate, search", 3.0), ("standard", size, "search", 3.1), ("better", size, "search", 3.2),
    ]  # fmt: skip
    assert queries.runs(recorded.connection, ["recipe = 'better'"], columns=columns)[1] == [
        ("better", size, "replicate", 3.0), ("better", size, "search", 3.2),
    ]  # fmt: skip


def test_the_loss_beside_the_margin_of_a_cell_is_what_its_search_minimises(recorded):
    cell = recorded.cell({}, axes={"lr": [1, 2, 3]}, limit="K", objective="K", members=4)
    for place, limit in enumerate((3.2, 3.0, 3.1)):
        recorded.ensemble(cell, (place,), lambda subset, limit=limit: limit + 0.2 * len(subset) ** -0.9, singles=5.0)
    columns, rows = queries.cells(recorded.connection, "study")
    row = dict(zip(columns, rows[0], strict=True))
    assert (row["objective"], row["val_loss_mean"]) == ("K", 5.0)
    assert (row["best_loss"], row["margin"]) == pytest.approx((3.0 + 0.2 * 4**-0.9, 0.1), abs=1e-4)


def test_a_misspelt_column_gets_the_nearest_name(connection):
    with pytest.raises(NotFoundError, match="'val_los' is not a column of runs; did you mean 'val_loss'"):
        queries.runs(connection, sort="val_los")
    with pytest.raises(QueryError, match="The columns of runs are: run_id, status"):
        queries.runs(connection, ["learning_rate = 1"])


def test_a_run_is_found_by_the_beginning_of_its_id(connection):
    run_id = run_spec(lr=3e-3).id
    found = queries.job_details(connection, run_id[:10])
    assert (found["row"]["run_id"], found["row"]["val_loss"]) == (run_id, 3.25)
    assert [len(found[part]) for part in ("evaluations", "attempts", "cells")] == [1, 1, 0]
    with pytest.raises(NotFoundError, match="3 ids begin with ''"):
        queries.job_details(connection, "")
    with pytest.raises(NotFoundError, match="no run id begins with 'xyz'"):
        queries.job_details(connection, "xyz")


def test_columns_of_one_name_are_told_apart(connection):
    assert queries.query(connection, "SELECT 1 AS a, 2 AS a, 3 AS a")[0] == ["a", "a_1", "a_2"]


def test_the_speed_of_a_size_is_the_median_of_its_finished_runs(connection):
    assert list(queries.flops_per_second(connection).values()) == [(2**60 + 1) / 2]


def test_a_refused_query_gives_the_databases_reason(connection):
    with pytest.raises(QueryError, match="Did you mean"):
        queries.query(connection, "FROM runn")
    with pytest.raises(QueryError, match="read-only"):
        queries.query(connection, "DELETE FROM run")


def test_studies_and_cells_carry_their_certificates(recorded):
    recorded.study("s")
    recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"weight_decay": [0.0, 0.1]}, study="s")
    columns, rows = queries.studies(recorded.connection)
    assert dict(zip(columns, rows[0], strict=True)) | {"updated_at": 0} == {
        "study": "s", "cells": 1, "certified": 1, "boundary": 0, "open": 0, "runs": 2, "updated_at": 0, "question": "which?",
    }  # fmt: skip
    columns, rows = queries.cells(recorded.connection, "s")
    assert dict(zip(columns, rows[0], strict=True))["state"] == "certified"
    with pytest.raises(NotFoundError, match="no study 'q' in this database; valid: s"):
        queries.cells(recorded.connection, "q")


def test_health_says_what_is_there(connection):
    assert queries.health(connection).startswith("3 run(s), 0 study(s)")
