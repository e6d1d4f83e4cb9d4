"""From run folders to rows."""

from __future__ import annotations

import json

import pytest
from folders import MODEL, NOW, run_spec, write_attempt, write_run

from dataeff.errors import InputError
from dataeff.records.ingest import ingest, record_cells, record_study
from dataeff.specs.result import write_atomically
from dataeff.specs.run import RunSpec

TABLES = ("run", "metric", "evaluation", "attempt", "artifact")


def rows(database, table):
    with database.read() as connection:
        return connection.execute(f"FROM {table} ORDER BY ALL").fetchall()


def test_a_finished_run_becomes_its_rows(database, store):
    spec = run_spec(lr=1e-2)
    folder = write_run(store, spec, 3.5, points=3)
    with database.write() as connection:
        assert ingest(connection, [folder], {"c0ffee": "letters"}) == 1
    with database.read() as connection:
        row = connection.execute(
            """SELECT status, corpus, corpus_name, lr, hidden, "order", val_loss, training_flops, peak_memory_bytes, started_at,
               parameters_total FROM run WHERE run_id = $1""", [spec.run_id]
        ).fetchone()  # fmt: skip
        (stored,) = connection.execute("SELECT spec FROM run").fetchone()
    assert RunSpec.model_validate(json.loads(stored)) == spec
    assert row[:9] == ("finished", "c0ffee", "letters", 0.01, 8, "same", 3.5, 2.0**60 + 1, 5_000_000_000)
    assert row[9] == NOW
    assert row[10] == MODEL.parameters_total
    assert rows(database, "metric") == sorted(
        (spec.run_id, step, 16 * step, name, value)
        for step in (1, 2, 3)
        for name, value in (("train_loss", 4.0 / step), ("lr", 1e-3), ("gradient_norm", None))
    )
    assert rows(database, "evaluation") == [(spec.run_id, 2, 32, "validation", 3.5, 0.01)]
    assert rows(database, "artifact") == [(spec.run_id, "weights", f"runs/{spec.run_id}/weights.safetensors", 1234)]
    assert rows(database, "attempt") == [(spec.run_id, 1, NOW, NOW, "finished", None, "here", 4242, "cpu")]


def test_ingesting_twice_changes_nothing(database, store):
    folders = [write_run(store, run_spec(train_seed=seed)) for seed in range(3)]
    before = None
    for new in (3, 0):
        with database.write() as connection:
            assert ingest(connection, [*folders, folders[0]]) == new
        now = {table: rows(database, table) for table in TABLES}
        assert before in (None, now)
        before = now
    assert [len(before[table]) for table in TABLES] == [3, 18, 3, 3, 3]


def test_a_diverged_run_has_no_loss_and_a_reason(database, store):
    with database.write() as connection:
        ingest(connection, [write_run(store, run_spec(), None)])
        assert connection.execute("SELECT status, val_loss, reason FROM run").fetchone() == (
            "diverged",
            None,
            "loss was not finite",
        )


def test_attempts_of_an_unfinished_run_are_recorded_and_follow_what_happens(database, store):
    spec = run_spec()
    folder = store.run(spec.run_id)
    write_attempt(folder, spec, 1, "running")
    outcomes = []
    for outcome in ("running", "killed"):
        write_attempt(folder, spec, 1, outcome)
        with database.write() as connection:
            ingest(connection, [folder])
            outcomes += connection.execute("SELECT outcome FROM attempt").fetchall()
    assert outcomes == [("running",), ("killed",)]
    write_attempt(folder, spec, 1, "finished")
    with database.write() as connection:
        ingest(connection, [folder])
        assert connection.execute("SELECT outcome, reason FROM attempt").fetchall() == [("finished", None)]
        assert connection.execute("SELECT count(*) FROM run").fetchone() == (0,)


def test_a_damaged_folder_is_named_and_nothing_of_the_batch_is_recorded(database, store):
    good, bad = write_run(store, run_spec()), write_run(store, run_spec(lr=1e-2))
    write_atomically(bad.result, bad.result.read_text()[:50])
    with pytest.raises(InputError, match="result.json cannot be read as a RunResult"), database.write() as connection:
        ingest(connection, [good, bad])
    assert rows(database, "run") == []


def test_a_folder_that_is_not_of_its_run_is_refused(database, store):
    folder = write_run(store, run_spec())
    moved = folder.path.rename(folder.path.with_name("0123456789abcdef"))
    with pytest.raises(InputError, match="not of 0123456789abcdef"), database.write() as connection:
        ingest(connection, [store.run(moved.name)])


def test_many_runs_with_long_curves_are_ingested_in_one_go(database, store):
    folders = [write_run(store, run_spec(train_seed=seed), points=500) for seed in range(40)]
    with database.write() as connection:
        assert ingest(connection, folders) == 40
        assert connection.execute("SELECT count(*) FROM metric").fetchone() == (40 * 500 * 3,)


def test_a_study_asked_again_keeps_its_start(database):
    for text in ("first", "second"):
        with database.write() as connection:
            record_study(connection, "s", "which?", "standard", text, {"sizes": [1]}, "asks")
    with database.read() as connection:
        assert connection.execute("SELECT text, started_at < updated_at, spec->'sizes' FROM study").fetchall() == [
            ("second", True, "[1]")
        ]


def test_a_cell_recorded_again_becomes_what_is_given(database):
    cell = {
        "cell_id": "s/r/1/n",
        "study": "s",
        "recipe": "r",
        "recipe_limit": "N",
        "seed_tokens": 1,
        "size": "n",
        "parameters_total": 2,
        "parameters_non_embedding": 1,
        "axes": {"lr": [1e-3, 3e-3], "epochs": [1]},
        "shape": [2, 1],
        "starts": [[0, 0]],
        "search_ended_at": None,
    }
    with database.write() as connection:
        record_cells(connection, [cell])
        record_cells(connection, [cell | {"shape": [2, 2], "search_ended_at": NOW}])
        found = connection.execute("SELECT shape, json_keys(axes), starts, search_ended_at FROM cell").fetchall()
    assert found == [([2, 2], ["lr", "epochs"], "[[0,0]]", NOW)]
