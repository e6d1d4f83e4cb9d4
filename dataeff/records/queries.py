"""The small reads behind the command line: plain SQL over a read-only connection, names checked first.

Where a function returns (columns, rows), both are as DuckDB gives them. Losses are in nats per token. Nothing here
writes, fits or formats.
"""

from collections.abc import Sequence
from typing import Any

import duckdb

from dataeff.errors import NotFoundError, QueryError, nearest

Table = tuple[list[str], list[tuple[Any, ...]]]

RUN_COLUMNS = (
    *("run_id", "status", "recipe", "seed_tokens", "size", "optimizer", "lr", "weight_decay", "epochs", "train_seed", "val_loss"),
    *("wall_seconds", "ended_at"),
)
_TABLES = {"train": "run", "ensemble": "ensemble", "sample": "sample"}  # of results, by kind of job; of all others it is `job`
SPEEDS = """SELECT parameters_total, median(training_flops / wall_seconds) AS speed FROM run
    WHERE status = 'finished' AND wall_seconds > 0 AND source IS NULL GROUP BY ALL"""
# Id and kind of every job whose result is recorded.
JOBS = "SELECT job_id AS id, kind FROM job"
JOBS += "".join(f" UNION ALL SELECT {table}_id, '{kind}' FROM {table}" for kind, table in _TABLES.items())


def literal(text: object) -> str:
    """Return text, such as a path, as a SQL string, where DuckDB takes no parameter."""
    return "'" + str(text).replace("'", "''") + "'"


def query(connection: duckdb.DuckDBPyConnection, text: str, parameters: Sequence[Any] = ()) -> Table:
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
    return {job_id for job_id, _ in connection.execute(JOBS).fetchall()}


def flops_per_second(connection: duckdb.DuckDBPyConnection) -> dict[int, float]:
    """Return the median training FLOP/s of the finished runs of each size, by total parameters."""
    return dict(connection.execute(SPEEDS).fetchall())


def runs(
    connection: duckdb.DuckDBPyConnection,
    where: Sequence[str] = (),
    sort: str = "val_loss",
    columns: Sequence[str] | None = None,
    limit: int = 50,
) -> Table:
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
    values = {name: f'any_value("{name}")' for name in of_run}
    values |= {name: f"string_agg(DISTINCT {name}, ', ' ORDER BY {name})" for name in of_use}
    selected = ", ".join(f'{values[name]} AS "{name}"' for name in chosen)
    conditions = " AND ".join(f"(\n{condition}\n)" for condition in where) or "true"
    text = f"""SELECT {selected} FROM study_run WHERE {conditions} GROUP BY study_run.run_id
        ORDER BY min(study_run."{key}") {direction} NULLS LAST, study_run.run_id LIMIT {limit or "ALL"}"""
    try:
        return query(connection, text)
    except QueryError as error:
        raise QueryError(f"{error}\nThe columns of runs are: {', '.join(valid)}") from error


def job_details(connection: duckdb.DuckDBPyConnection, job_id: str) -> dict[str, Any]:
    """Return one job by its id or the beginning of it: its `kind`, its `row` (a dict, the id alone where it never ended), and
    lists of dicts: `evaluations`, `losses` (of an ensemble's subsets), `attempts` and `cells`.

    Raises `NotFoundError` when no job or more than one begins so.
    """
    started = f"{JOBS} UNION SELECT job_id, kind FROM attempt"
    jobs = connection.execute(f"FROM ({started}) WHERE starts_with(id, $1) ORDER BY ALL", [job_id]).fetchall()
    if not jobs:
        raise NotFoundError(f"no run id begins with '{job_id}'; `dataeff runs` lists them, and table `attempt` has other jobs")
    if len(jobs) > 1:
        raise NotFoundError(f"{len(jobs)} ids begin with '{job_id}'; give more of it: {', '.join(id for id, _ in jobs[:5])}")
    ((full_id, kind),) = jobs
    table = _TABLES.get(kind, "job")
    rows = records(connection, f"FROM {table} WHERE {table}_id = $1", [full_id])
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
        "row": rows[0] if rows else {f"{table}_id": full_id},
        **{name: records(connection, query, [full_id]) for name, query in lists.items()},
    }


def studies(connection: duckdb.DuckDBPyConnection) -> Table:
    """Return (columns, rows): one row a recorded study, the counts of its cells by state, its recorded runs."""
    return query(
        connection,
        """SELECT study.name AS study, count(cell.cell_id) AS cells, count_if(state = 'certified') AS certified,
            count_if(state = 'boundary') AS boundary, count_if(state NOT IN ('certified', 'boundary')) AS open,
            (SELECT count(DISTINCT run_id) FROM trial JOIN run USING (run_id) JOIN cell USING (cell_id)
             WHERE cell.study = study.name) AS runs, updated_at, question
        FROM study LEFT JOIN cell ON cell.study = study.name GROUP BY ALL ORDER BY study.name""",
    )


def study_names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM study ORDER BY name").fetchall()]


def require_study(connection: duckdb.DuckDBPyConnection, study: str) -> None:
    """Raise `NotFoundError`, with the nearest name, unless the study is recorded."""
    if study not in (names := study_names(connection)):
        raise NotFoundError(f"no study '{study}' in this database; {nearest(study, names) if names else 'it has none yet'}")


def cells(connection: duckdb.DuckDBPyConnection, study: str) -> Table:
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


def health(connection: duckdb.DuckDBPyConnection) -> str:
    """Return one line: how much is recorded."""
    runs, studies, attempts = connection.execute(
        """SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM study),
            (SELECT count(*) FROM attempt WHERE outcome = 'running')"""
    ).fetchone()
    return f"{runs} run(s), {studies} study(s), {attempts} attempt(s) under way when last seen"
