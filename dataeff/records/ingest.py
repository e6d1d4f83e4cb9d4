"""From facts to rows, inside a write transaction that the caller opened.

A job's result is an immutable fact: its rows are written once and never changed, so recording it again changes nothing. An
attempt's row changes until it has ended. Rows travel as one JSON text a table and become typed rows in DuckDB, set by set.
Nothing here reads weights or decides what is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb

from dataeff.errors import InputError
from dataeff.facts.job import Attempt, Fact, Job, job_class
from dataeff.facts.store import JobFolder, Store, load_fact
from dataeff.records.queries import JOB_TABLES, recorded_ids

Rows = Iterable[Mapping[str, Any]]

_CURVES = """
    INSERT INTO metric BY NAME
    SELECT run_id, unnest(step) AS step, unnest(tokens) AS tokens, name, unnest(values) AS value
    FROM (
        SELECT run_id, step, tokens, unnest([{name: 'train_loss', values: train_loss},
            {name: 'gradient_norm', values: gradient_norm}, {name: 'lr', values: lr}], max_depth := 2)
        FROM (SELECT unnest(from_json_strict($rows, '[{"run_id": "VARCHAR", "step": ["BIGINT"], "tokens": ["BIGINT"],
            "train_loss": ["DOUBLE"], "gradient_norm": ["DOUBLE"], "lr": ["DOUBLE"]}]'), max_depth := 2))
    )"""


def read_job(kind: str, folder: JobFolder) -> tuple[Job, Fact]:
    """Return the job in a folder and its result. Raises `InputError`, which names the file, for a folder that is not whole."""
    job = load_fact(job_class(kind), folder.spec)
    result = load_fact(job.Result, folder.result)
    owner = next((getattr(result, name) for name in type(result).model_fields if name.endswith("_id")), job.id)
    if not folder.id == job.id == owner:
        raise InputError(
            f"{folder.path} holds the result of {kind} {owner} by the spec of {job.id}; move the folder back, or away"
        )
    return job, result


def unrecorded(connection: duckdb.DuckDBPyConnection | None, store: Store) -> list[tuple[str, JobFolder]]:
    """Return kind and folder of every job whose result is not in the database, whether it has one or not."""
    recorded = recorded_ids(connection) if connection else set()
    return [(kind, folder) for kind in Job.kinds for folder in store.folders(kind) if folder.id not in recorded]


def record_jobs(
    connection: duckdb.DuckDBPyConnection, jobs: Iterable[tuple[Job, Fact]], corpus_names: Mapping[str, str] | None = None
) -> int:
    """Record results; return how many are new. `corpus_names` gives a name for a corpus' fingerprint."""
    by_table: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for job, result in jobs:
        rows = job.rows(result)
        by_table.setdefault(next(iter(rows)), {})[job.id] = rows
    count = 0
    for main, by_id in by_table.items():
        key = JOB_TABLES[main]
        text = f"SELECT {key} FROM {main} WHERE list_contains($1, {key})"
        recorded = {job_id for (job_id,) in connection.execute(text, [list(by_id)]).fetchall()}
        new = [rows for job_id, rows in by_id.items() if job_id not in recorded]
        count += len(new)
        for row in (row for rows in new for row in rows.get("run", ())):
            row["corpus_name"] = (corpus_names or {}).get(row["corpus"])
        for table in dict.fromkeys(table for rows in new for table in rows):
            rows = [row for rows in new for row in rows.get(table, ())]
            if table == "curve":
                connection.execute(_CURVES, {"rows": _to_json(rows)})
            else:
                _insert(connection, table, rows)
    return count


def record_attempts(connection: duckdb.DuckDBPyConnection, attempts: Iterable[tuple[str, Attempt]]) -> None:
    """Record attempts, with the kind of their job; one recorded before changes only when it has ended since."""
    _insert(
        connection,
        "attempt",
        [{"kind": kind, **attempt.model_dump()} for kind, attempt in attempts],
        """ON CONFLICT (job_id, number) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome,
           reason = excluded.reason WHERE excluded.outcome <> 'running' AND excluded.outcome <> attempt.outcome""",
    )


def record_runs(connection: duckdb.DuckDBPyConnection, runs: Rows) -> int:
    """Record runs, mappings of the same columns of table `run`; return how many are new. One recorded before stays as it is."""
    return _insert(connection, "run", list(runs), "ON CONFLICT DO NOTHING")


def delete_cells(connection: duckdb.DuckDBPyConnection, study: str, kept: Sequence[str] = ()) -> int:
    """Delete a study's cells, but those kept, with their trials; return how many. Runs stay."""
    doomed = "SELECT cell_id FROM cell WHERE study = $1 AND NOT list_contains($2, cell_id)"
    (count,) = connection.execute(f"SELECT count(*) FROM ({doomed})", [study, list(kept)]).fetchone()
    for table in ("trial", "cell_ensemble", "cell") if count else ():
        connection.execute(f"DELETE FROM {table} WHERE cell_id IN ({doomed})", [study, list(kept)])
    return count


def record_study(connection: duckdb.DuckDBPyConnection, row: Mapping[str, Any]) -> None:
    """Record a study, a mapping of every column of its table; one recorded before becomes what is given."""
    _insert(connection, "study", [row], _replacing("name", row))


def record_cells(connection: duckdb.DuckDBPyConnection, cells: Rows, trials: Rows = (), ensembles: Rows = ()) -> None:
    """Record cells, mappings of the same columns of table `cell`, with all their trials and ensembles, in place of those before.

    A cell's `search_ended` becomes `search_ended_at`: when the last run that its search used had ended.
    """
    rows, ids = list(cells), [row["cell_id"] for row in cells]
    if not rows:
        return
    for table, key, uses in (("trial", "run_id", list(trials)), ("cell_ensemble", "ensemble_id", list(ensembles))):
        used = [f"{row['cell_id']} {row[key]}" for row in uses]
        connection.execute(
            f"DELETE FROM {table} WHERE list_contains($1, cell_id) AND NOT list_contains($2, cell_id || ' ' || {key})",
            [ids, used],
        )
        _insert(connection, table, uses, _replacing(f"cell_id, {key}", uses[0]) if uses else "")
    columns = [{name: value for name, value in row.items() if name != "search_ended"} for row in rows]
    _insert(connection, "cell", columns, _replacing("cell_id", columns[0]))
    connection.execute(
        """UPDATE cell SET search_ended_at = (SELECT max(ended_at) FROM trial JOIN run USING (run_id)
               WHERE trial.cell_id = cell.cell_id AND role = 'search')
           WHERE list_contains($1, cell_id)""",
        [[row["cell_id"] for row in rows if row.get("search_ended")]],
    )


def record_fits(connection: duckdb.DuckDBPyConnection, owners: Sequence[str], rows: Rows) -> None:
    """Record fits, each a mapping of every column of table `fit`, in place of those of their owners: the study, or for a fit of
    an ensemble its own id.
    """
    connection.execute("DELETE FROM fit WHERE list_contains($1, coalesce(study, fit_id))", [list(owners)])
    _insert(connection, "fit", list(rows))


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: list[Mapping[str, Any]], on_conflict: str = "") -> int:
    """Insert rows, mappings of the same columns, in one statement, with the types the table declares; return how many."""
    if not rows:
        return 0
    types = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
    structure = json.dumps([{name: types[name] for name in rows[0]}])
    (count,) = connection.execute(
        f"INSERT INTO {table} BY NAME SELECT unnest(from_json_strict($rows, '{structure}'), max_depth := 2) {on_conflict}",
        {"rows": _to_json(rows)},
    ).fetchone()
    return count


def _to_json(rows: Rows) -> str:
    return json.dumps(list(rows), default=_json, allow_nan=False)


def _json(value: object) -> object:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot become a column")


def _replacing(keys: str, row: Mapping[str, Any]) -> str:
    columns = [name for name in row if name not in keys.split(", ")]
    return f"ON CONFLICT ({keys}) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns)}"
