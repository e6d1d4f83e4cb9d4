"""The small reads behind the command line: plain SQL over a read-only connection, names checked first.

Where a function returns (columns, rows), both are as DuckDB gives them. Losses are in nats per token. Nothing here
writes, fits or formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from dataeff.errors import NotFoundError, QueryError, nearest

Answer = tuple[list[str], list[tuple[Any, ...]]]

RUN_COLUMNS = (
    *("run_id", "status", "recipe", "seed_tokens", "size", "optimizer", "lr", "weight_decay", "epochs", "train_seed", "val_loss"),
    *("wall_seconds", "ended_at"),
)
JOB_TABLES = {"run": "run_id", "ensemble": "ensemble_id", "sample": "sample_id", "job": "job_id"}  # of results, with their ids


def literal(text: object) -> str:
    """Return text, such as a path, as a SQL string, where DuckDB takes no parameter."""
    return "'" + str(text).replace("'", "''") + "'"


def query(connection: duckdb.DuckDBPyConnection, text: str, parameters: Sequence[Any] = ()) -> Answer:
    """Run one query of the user's and return its (columns, rows). Raises `QueryError` with DuckDB's reason and remedy."""
    try:
        if (statements := len(connection.extract_statements(text))) != 1:
            raise QueryError(f"there are {statements} queries in {text!r}; give one")
        result = connection.execute(text, list(parameters))
        given = [column[0] for column in result.description or []]
        names = [f"{name}_{n}" if (n := given[:i].count(name)) else name for i, name in enumerate(given)]
        return names, result.fetchall()
    except duckdb.Error as error:
        raise QueryError(f"the query failed: {error}") from error


def records(connection: duckdb.DuckDBPyConnection, text: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Run one query and return its rows as dicts by column name. Raises as `query` does."""
    columns, rows = query(connection, text, parameters)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def recorded_ids(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Return the id of every job whose result is recorded, of whichever kind."""
    text = " UNION ALL ".join(f"SELECT {key} FROM {table}" for table, key in JOB_TABLES.items())
    return {job_id for (job_id,) in connection.execute(text).fetchall()}


def flops_per_second(connection: duckdb.DuckDBPyConnection) -> dict[int, float]:
    """Return the median training FLOP/s of the finished runs of each size, by total parameters."""
    text = """SELECT parameters_total, median(training_flops / wall_seconds) FROM run
        WHERE status = 'finished' AND wall_seconds > 0 AND source IS NULL GROUP BY ALL"""
    return dict(connection.execute(text).fetchall())


def runs(
    connection: duckdb.DuckDBPyConnection,
    where: Sequence[str] = (),
    sort: str = "val_loss",
    columns: Sequence[str] | None = None,
    limit: int = 50,
) -> Answer:
    """Return (columns, rows) of the runs for which every SQL condition on the view `study_run` in `where` holds.

    Its study, recipe, size and role list all that remain under the conditions. `sort` is a column, with a minus before it for
    descending order; NULLs come last. `columns` defaults to the ones people look at first; `["all"]` is every column of `run`.
    `limit` 0 is no limit. Raises `NotFoundError` with the nearest column name, `QueryError` for a condition that DuckDB refuses.
    """
    of_use, of_run = ("study", "recipe", "size", "role"), connection.table("run").columns
    valid, chosen = (*of_run, *of_use), of_run if list(columns or ()) == ["all"] else list(columns or RUN_COLUMNS)
    key, direction = sort.removeprefix("-"), "DESC" if sort.startswith("-") else "ASC"
    for name in (*chosen, key):
        if name not in valid:
            raise NotFoundError(f"'{name}' is not a column of runs; {nearest(name, valid)}")
    names = ", ".join(f'"{name}"' for name in chosen)
    conditions = " AND ".join(f"(\n{condition}\n)" for condition in where) or "true"
    uses = ", ".join(f"string_agg(DISTINCT {name}, ', ' ORDER BY {name}) AS {name}" for name in of_use)
    order = f"{direction} NULLS LAST, run_id"
    first = f"""SELECT run_id FROM study_run WHERE {conditions} GROUP BY run_id
        ORDER BY min("{key}") {order} LIMIT {limit or "ALL"}"""
    used = f"(SELECT run_id, {uses} FROM study_run SEMI JOIN ({first}) USING (run_id) WHERE {conditions} GROUP BY run_id)"
    try:
        return query(connection, f'SELECT {names} FROM {used} JOIN run USING (run_id) ORDER BY "{key}" {order}')
    except QueryError as error:
        raise QueryError(f"{error}\nThe columns of runs are: {', '.join(valid)}") from error


def job_details(connection: duckdb.DuckDBPyConnection, job_id: str) -> dict[str, Any]:
    """Return one job by its id or the beginning of it: its `kind`, its `row` (a dict, the id alone where it never ended), and
    lists of dicts: `evaluations`, `losses` (of an ensemble's subsets), `attempts` and `cells`.

    Raises `NotFoundError` when no job or more than one begins so.
    """
    tables = {"train": ("run", "run_id"), "ensemble": ("ensemble", "ensemble_id"), "sample": ("sample", "sample_id")}
    ids = [f"SELECT {key} AS id, '{kind}' AS kind FROM {table}" for kind, (table, key) in tables.items()]
    ids += ["SELECT job_id, kind FROM job", "SELECT job_id, kind FROM attempt"]
    text = f"SELECT DISTINCT id, kind FROM ({' UNION ALL '.join(ids)}) WHERE starts_with(id, $1) ORDER BY ALL"
    jobs = connection.execute(text, [job_id]).fetchall()
    if not jobs:
        raise NotFoundError(f"no run id begins with '{job_id}'; `dataeff runs` lists them, and table `attempt` has other jobs")
    if len(jobs) > 1:
        raise NotFoundError(f"{len(jobs)} ids begin with '{job_id}'; give more of it: {', '.join(id for id, _ in jobs[:5])}")
    ((full_id, kind),) = jobs
    table, key = tables.get(kind, ("job", "job_id"))
    rows = records(connection, f"SELECT * FROM {table} WHERE {key} = $1", [full_id])
    lists = {
        "evaluations": "SELECT * EXCLUDE run_id FROM evaluation WHERE run_id = $1 ORDER BY step",
        "losses": "SELECT * EXCLUDE ensemble_id FROM ensemble_loss WHERE ensemble_id = $1 ORDER BY number",
        "attempts": "SELECT * EXCLUDE (job_id, kind) FROM attempt WHERE job_id = $1 ORDER BY number",
        "cells": """SELECT cell_id, study, role, number, trial.coordinates,
                coalesce(best_run.run_id = trial.run_id, false) AS is_best
            FROM trial JOIN best_run USING (cell_id) WHERE trial.run_id = $1
            UNION ALL SELECT cell_id, study, 'ensemble', number, coordinates, coordinates = best
            FROM cell_ensemble JOIN cell USING (cell_id) WHERE ensemble_id = $1 ORDER BY cell_id""",
    }
    return {
        "kind": kind,
        "row": rows[0] if rows else {key: full_id},
        **{name: records(connection, query, [full_id]) for name, query in lists.items()},
    }


def studies(connection: duckdb.DuckDBPyConnection) -> Answer:
    """Return (columns, rows): one row a recorded study, the counts of its cells by state, its recorded runs."""
    return query(
        connection,
        """SELECT study.name AS study, count(cell.cell_id) AS cells, count_if(state = 'certified') AS certified,
            count_if(state = 'boundary') AS boundary, count_if(state NOT IN ('certified', 'boundary')) AS open,
            (SELECT count(DISTINCT run_id) FROM trial JOIN run USING (run_id) JOIN cell USING (cell_id)
             WHERE cell.study = study.name) AS runs, updated_at, question
        FROM study LEFT JOIN cell ON cell.study = study.name GROUP BY ALL ORDER BY study.name""",
    )


def require_study(connection: duckdb.DuckDBPyConnection, study: str) -> None:
    """Raise `NotFoundError`, with the nearest name, unless the study is recorded."""
    names = [name for (name,) in connection.execute("SELECT name FROM study ORDER BY name").fetchall()]
    if study not in names:
        raise NotFoundError(f"no study '{study}' in this database; {nearest(study, names) if names else 'it has none yet'}")


def cells(connection: duckdb.DuckDBPyConnection, study: str) -> Answer:
    """Return (columns, rows): one row a cell of the study, its optimum and certificate. `best_loss` is what the search minimises:
    with objective K the limit of the members.

    Raises `NotFoundError` with the nearest name of a study.
    """
    require_study(connection, study)
    return query(
        connection,
        """SELECT best.recipe, best.seed_tokens, best.size, cell.state, objective, best_loss, cell.margin, val_loss_mean, seeds,
            lr, weight_decay, epochs, runs, diverged, search_ended_at, certificate.reason
        FROM best_run AS best JOIN certificate USING (cell_id) JOIN cell USING (cell_id)
        WHERE best.study = $1 ORDER BY best.recipe <> (SELECT baseline FROM study WHERE name = $1), best.recipe, best.seed_tokens,
            best.parameters_total""",
        [study],
    )


def names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of every table, view, column and macro of the database."""
    text = """SELECT table_name FROM information_schema.tables UNION SELECT column_name FROM information_schema.columns
        UNION SELECT function_name FROM duckdb_functions() WHERE NOT internal ORDER BY ALL"""
    return [name for (name,) in connection.execute(text).fetchall()]


def health(connection: duckdb.DuckDBPyConnection) -> str:
    """Return one line: how much is recorded."""
    runs, studies, attempts = connection.execute(
        """SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM study),
            (SELECT count(*) FROM attempt WHERE outcome = 'running')"""
    ).fetchone()
    return f"{runs} run(s), {studies} study(s), {attempts} attempt(s) under way when last seen"
